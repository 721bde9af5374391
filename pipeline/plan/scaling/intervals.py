"""Intervals of whatever is computed from a fitted law, by the bootstrap (Efron and Tibshirani 1993).

parametric  new losses at the same runs: the fitted law with normal noise in log L, whose scale is drawn anew for every
            resample from what the residuals leave open (chi-squared), so that few runs give wide intervals as Student's t does
percentile  runs drawn with replacement; the plain percentiles of what they give
bca         the same draws, corrected for bias and acceleration (Efron 1987), the latter by the jackknife

In simulations (20 and 42 runs over a factor of 30 and 1000 in compute, noise of 0.3%, 150 to 300 seeds) a 90% interval of the exponents,
and of the optimum ten times beyond the runs, held the truth in 89 to 93% of parametric, 88 to 93% of BCa and 91 to 98% of percentile
intervals; with heavy-tailed noise (Student's t, 3 degrees of freedom) parametric ones became too wide (95%) and BCa did not (90 to 94%).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from pipeline.errors import UserError
from pipeline.plan.scaling.fit import Fit
from pipeline.plan.scaling.many import refit
from pipeline.plan.scaling.objective import Array

KINDS = ("parametric", "percentile", "bca")
DRAWS = 400
LEVEL = 0.9
FEW = 50  # draws that percentiles cannot be read from
UNDEFINED = 0.02  # share of draws without a value beyond which an interval would be made up


@dataclass(frozen=True)
class Draws:
    """Resampled coefficients ``theta [B, 5]`` of a fit, and those of the jackknife for BCa."""

    fit: Fit
    kind: str
    level: float
    theta: Array
    jackknife: Array | None

    def interval(self, statistic: Callable[[Array], Array]) -> tuple[float, float] | None:
        """(low, high) of ``statistic``, which maps thetas ``[B, 5]`` to values ``[B]``; NaN where there is none.

        None where too many draws have no value: the data then leave the statistic open.
        """
        values = statistic(self.theta)
        ends = ((1 - self.level) / 2, (1 + self.level) / 2)
        whole = np.isfinite(values)
        if 1 - whole.mean() > UNDEFINED:
            return None
        values = values[whole]
        if self.jackknife is not None:
            shares = _bca(values, float(statistic(self.fit.theta[None])[0]), statistic(self.jackknife), ends)
            ends = shares if all(map(math.isfinite, shares)) else ends
        low, high = np.quantile(values, ends)
        return float(low), float(high)


def draw(
    fit: Fit, kind: str = "parametric", level: float = LEVEL, draws: int = DRAWS, seed: int = 1234
) -> Draws | None:
    """Resample a fit.  None without a degree of freedom to tell the noise by.

    Raises :class:`UserError` for an unknown kind, a level outside (0, 1) or too few draws.
    """
    if kind not in KINDS:
        raise UserError(f"--interval {kind}: the kinds are {', '.join(KINDS)}")
    if not 0 < level < 1:
        raise UserError(f"--level {level:g} is not a share between 0 and 1, e.g. 0.9")
    if draws < FEW:
        raise UserError(f"--bootstrap {draws}: percentiles need at least {FEW} draws")
    if fit.freedom < 1:
        return None
    rng = np.random.default_rng(seed)
    design, runs = fit.design, len(fit.residuals)
    ones = np.ones((draws, runs))
    if kind == "parametric":
        scale = fit.noise * np.sqrt(fit.freedom / rng.chisquare(fit.freedom, (draws, 1)))
        fitted = design.y - fit.residuals
        y = fitted + scale * rng.standard_normal((draws, runs))
        return Draws(fit, kind, level, refit(fit.theta, design, y, ones), None)
    counts = rng.multinomial(runs, np.full(runs, 1 / runs), draws).astype(np.float64)
    theta = refit(fit.theta, design, ones * design.y, counts)
    if kind == "percentile":
        return Draws(fit, kind, level, theta, None)
    left_out = refit(fit.theta, design, np.ones((runs, runs)) * design.y, 1 - np.eye(runs))
    return Draws(fit, kind, level, theta, left_out)


def _bca(values: Array, estimate: float, jackknife: Array, ends: tuple[float, float]) -> tuple[float, float]:
    """The quantiles at which to read (Efron 1987, equation 3.1 on); NaN where the jackknife has no spread."""
    below = float(np.clip((values < estimate).mean(), 1 / len(values), 1 - 1 / len(values)))
    off = jackknife.mean() - jackknife
    spread = float((off**2).sum()) ** 1.5
    acceleration = float((off**3).sum()) / (6 * spread) if spread > 0 else math.nan
    bias = float(ndtri(below))

    def place(end: float) -> float:
        moved = bias + float(ndtri(end))
        return float(ndtr(bias + moved / (1 - acceleration * moved)))

    return place(ends[0]), place(ends[1])
