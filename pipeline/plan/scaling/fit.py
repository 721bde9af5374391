"""Fit L(N, D) = E + A/N^alpha + B/D^beta to runs (Hoffmann et al. 2022, section 3.3, approach 3).

L-BFGS minimises the objective (:mod:`~pipeline.plan.scaling.objective`, whose gradient is analytic) from a grid of starts.  It has local
minima, with alpha or beta stuck at a wall of the grid, so all 300 points of the grid are first brought near theirs at once
(:mod:`~pipeline.plan.scaling.many`), and L-BFGS goes on from the best of different exponents.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from pipeline.errors import UserError
from pipeline.plan.scaling.laws import FLOP_PER_TOKEN, Parametric
from pipeline.plan.scaling.many import refit
from pipeline.plan.scaling.objective import PARAMETERS, Array, Design, huber, objective, predict

SAME_LOSS = 1e-6  # of log loss: a spread that rounding alone makes
STARTS = 4  # of the grid, that L-BFGS goes on from
LONGEST = 300  # iterations of each; those near a minimum need tens, and a flat valley (E near 0) has no end
APPROACH = 60  # iterations that bring the grid near its minima


@dataclass(frozen=True)
class Fit:
    """A fitted law: ``residuals`` are log L measured - fitted; ``noise`` their scale, sqrt(sum r^2 / (runs - 5))."""

    design: Design
    theta: Array
    law: Parametric
    objective: float
    residuals: Array

    @property
    def freedom(self) -> int:
        """Runs more than the law has coefficients."""
        return len(self.residuals) - PARAMETERS

    @property
    def noise(self) -> float:
        """Standard deviation of log L about the law; NaN without a degree of freedom."""
        return math.sqrt(float(np.sum(self.residuals**2)) / self.freedom) if self.freedom else math.nan


def fit(
    parameters: Array, tokens: Array, loss: Array, *, per_token: float = FLOP_PER_TOKEN, starts: int = STARTS
) -> Fit:
    """The law of these runs.

    Raises :class:`UserError` for fewer runs than coefficients, or runs of one size, length or loss.
    """
    refuse_too_few(parameters, tokens)
    if float(np.ptp(np.log(loss))) < SAME_LOSS:
        raise UserError(
            f"all {len(loss)} runs have the same loss ({float(loss[0]):g}): it falls with neither size nor data, and "
            "there is no law to fit"
        )
    design = Design.of(parameters, tokens, loss)
    found = [
        minimize(
            objective,
            start,
            args=(design,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": LONGEST, "ftol": 1e-12, "gtol": 1e-8},
        )
        for start in _starts(design, starts)
    ]
    best = min(found, key=lambda each: float(each.fun))
    theta = np.asarray(best.x, dtype=np.float64)
    fitted, _ = predict(theta[None], design)
    return Fit(design, theta, design.law(theta, per_token), float(best.fun), design.y - fitted[0])


def refuse_too_few(parameters: Array, tokens: Array) -> None:
    """Raise :class:`UserError` where the law cannot be told from these runs."""
    if len(parameters) < PARAMETERS:
        raise UserError(
            f"{len(parameters)} runs cannot tell the {PARAMETERS} coefficients of L(N, D) = E + A/N^alpha + B/D^beta; give at "
            f"least {PARAMETERS}, better 16 or more over four budgets (`lifecycle scale sweep`)"
        )
    for values, what in ((parameters, "sizes"), (tokens, "numbers of tokens")):
        kinds = len(np.unique(np.round(np.log(values), 6)))
        if kinds < 3:
            raise UserError(
                f"runs of {kinds} different {what} cannot tell a power law with an offset; at least 3 are needed"
            )


def _starts(design: Design, count: int) -> list[Array]:
    """The best of the grid once each point is near its minimum, no two with the same exponents.

    At the centre of the runs the three terms make up the typical loss: the grid is over their shares of it, and over the exponents.
    """
    exponents = (0.05, 0.2, 0.4, 0.7, 1.2)
    typical = float(np.median(design.y))
    floor = math.exp(float(design.y.min()) - typical)  # E lies below every loss
    points = []
    for alpha, beta, kept, of_n in itertools.product(
        exponents, exponents, (0.1, 0.4, 0.7, 0.95), (0.2, 0.5, 0.8)
    ):
        share = kept * floor
        shares = ((1 - share) * of_n, (1 - share) * (1 - of_n), share)
        points.append((*(math.log(value) + typical for value in shares), alpha, beta))
    grid = np.array(points)
    y = np.repeat(design.y[None], len(grid), axis=0)
    near = refit(grid, design, y, np.ones_like(y), APPROACH)
    fitted, _ = predict(near, design)
    order = np.argsort(huber(fitted - design.y).sum(axis=1), kind="stable")
    chosen: dict[tuple[float, float], Array] = {}
    for place in order:
        chosen.setdefault((round(near[place, 3], 2), round(near[place, 4], 2)), near[place])
        if len(chosen) == count:
            break
    return list(chosen.values())
