"""From compute to loss to task accuracy (Dubey et al. 2024, Llama 3, section 3.2.1): the two fits and their errors.

The normalised negative log-likelihood of the right answer is linear in log compute,

    NLL(C) = p + q log10 C,

and accuracy is a sigmoid of it between chance and a ceiling, which are settings and not fitted,

    accuracy = chance + (ceiling - chance) / (1 + exp(k (NLL - m))).

points.csv has one row a model: ``nll``; ``flops`` where it may enter the first fit, ``accuracy`` where it may enter the second (Llama 3 fits
the second with Llama 2 models besides); ``name``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from pipeline.errors import UserError
from pipeline.plan.scaling.budget import MOST_FLOP
from pipeline.plan.scaling.objective import Array
from pipeline.plan.scaling.table import LEAST_LOSS, MOST_LOSS, POSITIVE, SHARE, TEXT, Column, read_rows

COLUMNS = {
    "nll": Column(POSITIVE, needed=True, filled=True, least=LEAST_LOSS, most=MOST_LOSS),
    "flops": Column(POSITIVE, least=1, most=MOST_FLOP),
    "accuracy": Column(SHARE),
    "name": Column(TEXT),
}
FEWEST = 3  # points of each fit: one more than it has coefficients


@dataclass(frozen=True)
class Points:
    """Columns of points.csv ``[points]``; NaN where a cell is empty."""

    nll: Array
    flops: Array
    accuracy: Array
    names: tuple[str, ...]

    def without(self, place: int) -> Points:
        """All but one point."""
        kept = [row for row in range(len(self.names)) if row != place]
        return Points(
            self.nll[kept], self.flops[kept], self.accuracy[kept], tuple(self.names[row] for row in kept)
        )

    @property
    def with_flops(self) -> Any:
        """Which points enter the first fit."""
        return np.isfinite(self.flops)

    @property
    def with_accuracy(self) -> Any:
        """Which points enter the second fit."""
        return np.isfinite(self.accuracy)


@dataclass(frozen=True)
class Chain:
    """Both fits: NLL = ``p`` + ``q`` log10 C, and the sigmoid's steepness ``k`` and middle ``m``."""

    p: float
    q: float
    k: float
    m: float
    chance: float
    ceiling: float

    def nll(self, flops: float) -> float:
        """Predicted normalised negative log-likelihood."""
        return self.p + self.q * math.log10(flops)

    def accuracy(self, nll: float) -> float:
        """Predicted accuracy."""
        return float(_sigmoid(np.array([self.k, self.m]), np.array([nll]), self.chance, self.ceiling)[0])


@dataclass(frozen=True)
class Missed:
    """Errors on points that the fit did not see: of NLL relative, of accuracy in points of accuracy (from compute alone)."""

    split: str
    points: int
    nll: float
    accuracy: float
    largest: float


def read_points(path: Path) -> Points:
    """The points of a file.  Raises :class:`UserError` by file and line, and for too few points for either fit."""
    rows = read_rows(path, COLUMNS)
    nll, flops, accuracy = (
        np.array([row.numbers.get(name, math.nan) for row in rows]) for name in ("nll", "flops", "accuracy")
    )
    found = Points(nll, flops, accuracy, tuple(row.texts.get("name", f"line {row.line}") for row in rows))
    for which, what in ((found.with_flops, "flops"), (found.with_accuracy, "accuracy")):
        if which.sum() < FEWEST:
            raise UserError(
                f"{path}: {int(which.sum())} points with {what}; a fit of two coefficients needs at least {FEWEST}"
            )
    for values, what in (
        (found.flops[found.with_flops], "flops"),
        (found.nll[found.with_accuracy], "nll"),
    ):
        if np.ptp(np.log(values)) < 1e-9:
            raise UserError(f"{path}: all points have the same {what}: there is no slope to tell")
    return found


def fit_chain(points: Points, chance: float, ceiling: float) -> Chain:
    """Both fits by least squares."""
    compute = np.log10(points.flops[points.with_flops])
    q, p = np.polyfit(compute, points.nll[points.with_flops], 1)
    nll, accuracy = points.nll[points.with_accuracy], points.accuracy[points.with_accuracy]
    k, m = _fit_sigmoid(nll, accuracy, chance, ceiling)
    return Chain(float(p), float(q), k, m, chance, ceiling)


def errors(points: Points, chance: float, ceiling: float) -> list[Missed]:
    """Each point with compute and accuracy predicted from its compute by fits that have not seen it."""
    off_nll, off_accuracy, flops = [], [], []
    for place in np.flatnonzero(points.with_flops & points.with_accuracy):
        rest = points.without(int(place))
        if min(rest.with_flops.sum(), rest.with_accuracy.sum()) < FEWEST:
            return []
        chain = fit_chain(rest, chance, ceiling)
        nll = chain.nll(float(points.flops[place]))
        off_nll.append(abs(nll / float(points.nll[place]) - 1))
        off_accuracy.append(abs(chain.accuracy(nll) - float(points.accuracy[place])))
        flops.append(float(points.flops[place]))
    if not flops:
        return []
    last = int(np.argmax(flops))
    return [
        Missed(
            "one point out",
            len(flops),
            float(np.mean(off_nll)),
            float(np.mean(off_accuracy)),
            max(off_accuracy),
        ),
        Missed("largest compute out", 1, off_nll[last], off_accuracy[last], off_accuracy[last]),
    ]


def _fit_sigmoid(nll: Array, accuracy: Array, chance: float, ceiling: float) -> tuple[float, float]:
    start = np.array([4 / max(float(np.ptp(nll)), 1e-6), float(np.median(nll))])

    def residuals(coefficients: Array) -> Array:
        found: Array = _sigmoid(coefficients, nll, chance, ceiling) - accuracy
        return found

    best = least_squares(residuals, start, method="lm", x_scale=np.maximum(np.abs(start), 1e-6))
    return float(best.x[0]), float(best.x[1])


def _sigmoid(coefficients: Array, nll: Array, chance: float, ceiling: float) -> Array:
    k, m = coefficients
    found: Array = chance + (ceiling - chance) / (1 + np.exp(np.clip(k * (nll - m), -500, 500)))
    return found


def interval(
    chain: Chain, points: Points, flops: float, level: float, draws: int, seed: int
) -> tuple[float, float]:
    """Accuracies between which the forecast lies: normal noise of each fit's own scale, both fitted anew, a new NLL drawn."""
    rng = np.random.default_rng(seed)
    first, second = points.with_flops, points.with_accuracy
    line = chain.p + chain.q * np.log10(points.flops[first])
    curve = _sigmoid(np.array([chain.k, chain.m]), points.nll[second], chain.chance, chain.ceiling)
    scales = [
        math.sqrt(float(np.sum((seen - fitted) ** 2)) / (len(fitted) - 2))
        for seen, fitted in ((points.nll[first], line), (points.accuracy[second], curve))
    ]
    found = []
    for _ in range(draws):
        wider = [
            scale * math.sqrt((len(values) - 2) / rng.chisquare(len(values) - 2))
            for scale, values in zip(scales, (line, curve), strict=True)
        ]
        nll, accuracy = points.nll.copy(), points.accuracy.copy()
        nll[first] = line + wider[0] * rng.standard_normal(len(line))
        accuracy[second] = curve + wider[1] * rng.standard_normal(len(curve))
        q, p = np.polyfit(np.log10(points.flops[first]), nll[first], 1)
        k, m = _fit_sigmoid(points.nll[second], accuracy[second], chain.chance, chain.ceiling)
        drawn = Chain(float(p), float(q), k, m, chain.chance, chain.ceiling)
        new = drawn.nll(flops) + wider[0] * rng.standard_normal()
        found.append(drawn.accuracy(new) + wider[1] * rng.standard_normal())
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return max(0.0, float(low)), min(1.0, float(high))
