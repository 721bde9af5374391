"""IsoFLOP analysis: a parabola a budget, and a power law over the minima.

Hoffmann et al. 2022, section 3.2 (approach 2), in the manner of Dubey et al. 2024 (Llama 3), section 3.2.1: at each budget loss is
fitted by a second-degree polynomial in log N; its minimum is the compute-optimal size; D*(C) = A C^alpha is fitted over the minima in
logs.  N* = C / (k D*), with k the runs' own FLOP per parameter and token (6, where no other is known).  The loss at the minima is fitted as
a power law of C without a constant term, which is optimistic where it is extrapolated far.

A budget counts when at least three sizes were run, the parabola opens upwards, and its minimum lies inside of the sizes that were run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipeline.plan.scaling.objective import Array
from pipeline.plan.scaling.runs import Runs

SAME_BUDGET = math.log(1.2)  # runs whose compute is closer than this share a budget


@dataclass(frozen=True)
class Parabola:
    """loss = c0 + c1 x + c2 x^2 with x = log N - ``centre``; ``fault`` says why the budget does not count."""

    flops: float
    per_token: float
    centre: float
    coefficients: tuple[float, float, float]
    rows: tuple[int, ...]
    smallest: float
    largest: float
    residuals: tuple[float, ...]
    fault: str | None

    @property
    def parameters(self) -> float:
        """The size of the lowest loss."""
        _, c1, c2 = self.coefficients
        return math.exp(self.centre - c1 / (2 * c2))

    @property
    def tokens(self) -> float:
        """What the budget leaves that size."""
        return self.flops / (self.per_token * self.parameters)

    @property
    def loss(self) -> float:
        """The lowest loss, nats a token."""
        c0, c1, c2 = self.coefficients
        return c0 - c1**2 / (4 * c2)

    def at(self, parameters: float) -> float:
        """The parabola's loss at a size."""
        x = math.log(parameters) - self.centre
        c0, c1, c2 = self.coefficients
        return c0 + c1 * x + c2 * x * x


@dataclass(frozen=True)
class PowerLaw:
    """``coefficient`` x C^``exponent``."""

    coefficient: float
    exponent: float

    def at(self, flops: float) -> float:
        """Its value at this compute."""
        return float(self.coefficient * flops**self.exponent)


@dataclass(frozen=True)
class IsoFlop:
    """Parabolas of all budgets; laws of tokens and loss over those that count, None where fewer than two do.

    ``draws``: log A, alpha, log of the loss's coefficient and its exponent of each resample ``[B, 4]``, NaN where a
    parabola lost its minimum; None where the runs leave no degree of freedom.
    """

    parabolas: tuple[Parabola, ...]
    tokens: PowerLaw | None
    loss: PowerLaw | None
    per_token: float
    noise: float
    draws: Array | None

    @property
    def counting(self) -> tuple[Parabola, ...]:
        """The budgets whose minimum is known."""
        return tuple(each for each in self.parabolas if each.fault is None)

    def optimum(self, flops: float) -> tuple[float, float]:
        """Parameters and tokens at this compute."""
        assert self.tokens is not None
        tokens = self.tokens.at(flops)
        return flops / (self.per_token * tokens), tokens


def budgets(runs: Runs) -> list[tuple[int, ...]]:
    """The runs of each budget, by their place: those of like compute, the smallest budget first."""
    logs = np.log(runs.budget)
    order = np.argsort(logs, kind="stable")
    groups: list[list[int]] = []
    for place in order:
        if groups and logs[place] - logs[groups[-1][0]] < SAME_BUDGET:
            groups[-1].append(int(place))
        else:
            groups.append([int(place)])
    return [tuple(sorted(group, key=lambda row: float(runs.parameters[row]))) for group in groups]


def analyse(runs: Runs, draws: int = 400, seed: int = 1234) -> IsoFlop:
    """Fit parabolas to every budget with three sizes or more, and the power laws over their minima."""
    parabolas = tuple(parabola(runs, rows) for rows in budgets(runs) if _sizes(runs, rows) >= 3)
    counting = [each for each in parabolas if each.fault is None]
    per_token = float(np.median(runs.flops / (runs.parameters * runs.tokens)))
    freedom = sum(len(each.rows) - 3 for each in counting)
    squares = sum(r * r for each in counting for r in each.residuals)
    noise = math.sqrt(squares / freedom) if freedom else math.nan
    if len(counting) < 2:
        return IsoFlop(parabolas, None, None, per_token, noise, None)
    compute = np.log([each.flops for each in counting])
    tokens = _line(compute, np.log([[each.tokens for each in counting]]))[0]
    loss = _line(compute, np.log([[each.loss for each in counting]]))[0]
    drawn = _draw(runs, counting, noise, freedom, draws, seed) if freedom else None
    return IsoFlop(parabolas, _law(tokens), _law(loss), per_token, noise, drawn)


def parabola(runs: Runs, rows: tuple[int, ...]) -> Parabola:
    """The parabola of one budget's runs, and whether its minimum can be believed."""
    sizes, losses = runs.parameters[list(rows)], runs.loss[list(rows)]
    x, centre = _centred(sizes)
    basis = np.stack([np.ones_like(x), x, x * x], axis=1)
    found, *_ = np.linalg.lstsq(basis, losses, rcond=None)
    c0, c1, c2 = (float(value) for value in found)
    flops = float(np.exp(np.log(runs.flops[list(rows)]).mean()))
    ratio = runs.flops[list(rows)] / (sizes * runs.tokens[list(rows)])
    made = Parabola(
        flops,
        float(np.median(ratio)),
        centre,
        (c0, c1, c2),
        rows,
        float(sizes.min()),
        float(sizes.max()),
        tuple(float(value) for value in losses - basis @ found),
        None,
    )
    fault = _fault(made)
    return made if fault is None else Parabola(**{**made.__dict__, "fault": fault})


def _fault(made: Parabola) -> str | None:
    if made.coefficients[2] <= 0:
        return "the parabola does not open upwards: there is no minimum"
    place = made.centre - made.coefficients[1] / (2 * made.coefficients[2])
    if place <= math.log(made.smallest):
        return f"the minimum lies below the smallest size that was run ({made.smallest:.3g} parameters): add smaller ones"
    if place >= math.log(made.largest):
        return f"the minimum lies above the largest size that was run ({made.largest:.3g} parameters): add larger ones"
    return None


def _draw(runs: Runs, counting: list[Parabola], noise: float, freedom: int, draws: int, seed: int) -> Array:
    """The two power laws of ``draws`` resamples: the parabolas' losses with normal noise of the pooled scale."""
    rng = np.random.default_rng(seed)
    scale = noise * np.sqrt(freedom / rng.chisquare(freedom, (draws, 1)))
    places, losses = [], []
    for each in counting:
        x, centre = _centred(runs.parameters[list(each.rows)])
        basis = np.stack([np.ones_like(x), x, x * x], axis=1)
        fitted = runs.loss[list(each.rows)] - np.array(each.residuals)
        y = fitted + scale * rng.standard_normal((draws, len(x)))
        c0, c1, c2 = np.linalg.pinv(basis) @ y.T
        c2 = np.where(c2 > 0, c2, np.nan)
        places.append(math.log(each.flops / each.per_token) - (centre - c1 / (2 * c2)))
        lowest = c0 - c1**2 / (4 * c2)
        losses.append(np.log(np.where(lowest > 0, lowest, np.nan)))
    compute = np.log([each.flops for each in counting])
    return np.concatenate(
        [_line(compute, np.stack(places, axis=1)), _line(compute, np.stack(losses, axis=1))], axis=1
    )


def _line(x: Array, y: Array) -> Array:
    """Intercept and slope ``[B, 2]`` of least-squares lines through ``y [B, points]`` over ``x [points]``."""
    middle = x - x.mean()
    slope = y @ middle / float(middle @ middle)
    return np.stack([y.mean(axis=1) - slope * x.mean(), slope], axis=1)


def _law(line: Array) -> PowerLaw:
    return PowerLaw(math.exp(float(line[0])), float(line[1]))


def _centred(sizes: Array) -> tuple[Array, float]:
    x = np.log(sizes)
    centre = float(x.mean())
    return x - centre, centre


def _sizes(runs: Runs, rows: tuple[int, ...]) -> int:
    return len({round(float(runs.parameters[row])) for row in rows})
