"""Repeated sampling: how coverage grows with samples, and what a small model sampled often is worth.

**Coverage** (Brown et al. 2024, "Large Language Monkeys"): the share of problems that at least one of ``k`` samples
solves, ``coverage(k) = exp(a k^b)`` with ``a, b < 0``.  It is measured without bias from ``n`` samples with ``c`` correct
as ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, equation 1), averaged over problems; the ratio of binomials is a
product of ``min(c, k)`` factors, summed as logarithms, so that it neither overflows nor cancels.

``log(-log coverage) = log(-a) + b log k`` is a straight line.  Each k is weighted by the inverse variance of its
ordinate (the problems' standard error, carried over by the delta method).  Coverages at different k are of the same
samples and hence not independent: intervals are from resampling *problems*, never from the line's residuals.

Coverage is what a perfect verifier would turn into accuracy; picking by vote or a learned judge gives less.

**Small against large** (Snell et al. 2024, section 7): a model with ``M`` times the parameters costs ``M`` times in training
(6 N D_pre) and serving (2 N D_inf); for the same FLOP the small one may use ``M + 3 (D_pre/D_inf) (M - 1)`` times the
inference tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import UserError
from pipeline.plan.serving.samples import Problem

BOOTSTRAPS = 400
BLOCK = 1 << 20  # factors of the product at once


@dataclass(frozen=True)
class Curve:
    """``coverage(k) = exp(a k^b)``."""

    a: float
    b: float

    def coverage(self, k: float) -> float:
        """Share of problems that one of ``k`` samples solves."""
        return math.exp(self.a * k**self.b)

    def samples_for(self, coverage: float) -> float:
        """Samples for a coverage; infinite where the curve overflows, or does not grow with samples."""
        if self.b >= 0:
            return math.inf
        try:
            return float((math.log(coverage) / self.a) ** (1 / self.b))
        except OverflowError:
            return math.inf


def through(first: tuple[float, float], second: tuple[float, float]) -> Curve:
    """The curve through two points (k, coverage)."""
    (k1, c1), (k2, c2) = first, second
    b = math.log(math.log(c2) / math.log(c1)) / math.log(k2 / k1)
    return Curve(math.log(c1) / k1**b, b)


def pass_at(samples: int, correct: int, k: int) -> float:
    """Unbiased chance that one of ``k`` samples is correct, of ``correct`` among ``samples``.

    Raises :class:`UserError` when there are more correct or more asked for than sampled.
    """
    if not (0 <= correct <= samples and 1 <= k <= samples):
        raise UserError(
            f"pass@{k} of {correct} correct among {samples} samples: needs 0 <= correct <= samples and 1 <= k <= samples"
        )
    import numpy as np

    if samples - correct < k:
        return 1.0
    fewer, other = min(correct, k), max(correct, k)
    log = 0.0
    for start in range(0, fewer, BLOCK):
        places = samples - np.arange(start, min(fewer, start + BLOCK), dtype=float)
        log += float(np.log1p(-other / places).sum())
    return -math.expm1(log)


@dataclass(frozen=True)
class Fit:
    """A curve fitted to measured coverages, with its 95% intervals and its error where it was not fitted.

    ``left_out``: the largest k, which a fit to the others (at most a quarter of it) was asked for: measured and predicted
    coverage; None where there are too few points.
    """

    curve: Curve
    a_interval: tuple[float, float]
    b_interval: tuple[float, float]
    points: tuple[tuple[int, float, float], ...]  # k, coverage, standard error
    problems: int
    left_out: tuple[int, float, float] | None
    warnings: tuple[str, ...]


def ladder(most: int) -> list[int]:
    """Numbers of samples to measure at: 1, 2, 4 and so on, and the most."""
    found = [2**power for power in range(most.bit_length()) if 2**power <= most]
    return found if found[-1] == most else [*found, most]


def fit(problems: Sequence[Problem], steps: Sequence[int] | None = None, seed: int = 0) -> Fit:
    """Fit a curve to pass counts.

    Raises :class:`UserError` for a k above the samples of a problem, and where fewer than three coverages lie strictly
    between 0 and 1 (a curve of two constants needs a point more to be held to).
    """
    import numpy as np

    fewest = min(problems, key=lambda problem: problem.samples)
    ks = sorted(set(steps)) if steps else ladder(fewest.samples)
    for k in ks:
        if not 1 <= k <= fewest.samples:
            raise UserError(
                f"k = {k}: the problem {fewest.name!r} has {fewest.samples} samples; k must be from 1 to that"
            )
    table = np.array([[pass_at(one.samples, one.correct, k) for k in ks] for one in problems])
    count = len(problems)
    means = table.mean(axis=0)
    spread = table.std(axis=0, ddof=1) / math.sqrt(count) if count > 1 else np.full(len(ks), np.nan)
    used = (means > 0) & (means < 1) & (spread > 0)
    if used.sum() < 3:
        raise UserError(
            f"only {int(used.sum())} of {len(ks)} coverages lie strictly between 0 and 1 with a spread over problems, and "
            "exp(a k^b) has two constants: give more problems or more samples of each"
        )
    axis = np.log(np.array(ks, dtype=float))
    intercept, slope = _line(axis[used], means[used], spread[used])
    curve = Curve(-math.exp(intercept), float(slope))
    draws = np.random.default_rng(seed).integers(0, count, (BOOTSTRAPS, count))
    lines = [_line_of(axis, table[draw]) for draw in draws]
    kept = np.array([line for line in lines if line is not None])
    low, high = np.percentile(kept, [2.5, 97.5], axis=0)
    points = tuple((k, float(mean), float(error)) for k, mean, error in zip(ks, means, spread, strict=True))
    left_out = _left_out(ks, axis, means, spread, used)
    return Fit(
        curve,
        (-math.exp(high[0]), -math.exp(low[0])),
        (float(low[1]), float(high[1])),
        points,
        count,
        left_out,
        tuple(_warnings(curve, count, left_out, BOOTSTRAPS - len(kept))),
    )


def flop_matched(ratio: float, pretraining_per_inference: float) -> float:
    """Inference tokens that a small model may use for the FLOP of one ``ratio`` times its size (Snell et al. 2024).

    ``pretraining_per_inference`` is D_pre / D_inf; 0 where both models exist already and only serving counts.
    """
    return ratio + 3 * pretraining_per_inference * (ratio - 1)


def _line(axis: Any, means: Any, spread: Any) -> tuple[float, float]:
    """Weighted least squares of log(-log coverage) on log k: intercept and slope."""
    import numpy as np

    logs = np.log(means)
    ordinate = np.log(-logs)
    weights = np.abs(means * logs) / spread  # polyfit squares them
    slope, intercept = np.polyfit(axis, ordinate, 1, w=weights)
    return float(intercept), float(slope)


def _line_of(axis: Any, table: Any) -> tuple[float, float] | None:
    means = table.mean(axis=0)
    spread = table.std(axis=0, ddof=1) / math.sqrt(len(table))
    used = (means > 0) & (means < 1) & (spread > 0)
    return _line(axis[used], means[used], spread[used]) if used.sum() >= 2 else None


def _left_out(
    ks: list[int], axis: Any, means: Any, spread: Any, used: Any
) -> tuple[int, float, float] | None:
    """Measured and predicted coverage at the largest k, from the k that are a quarter of it at most."""
    import numpy as np

    near = used & (np.array(ks) <= ks[-1] / 4)
    if near.sum() < 2:
        return None
    intercept, slope = _line(axis[near], means[near], spread[near])
    return ks[-1], float(means[-1]), Curve(-math.exp(intercept), slope).coverage(ks[-1])


def _warnings(
    curve: Curve, problems: int, left_out: tuple[int, float, float] | None, failed: int
) -> list[str]:
    found = []
    if curve.b >= 0:
        found.append("coverage does not grow with k: the curve must not be extrapolated")
    if problems < 30:
        found.append(f"only {problems} problems: the intervals are rough")
    if left_out is None:
        found.append("too few numbers of samples to leave the largest out: the extrapolation is untested")
    elif abs(left_out[2] - left_out[1]) > 0.05:
        found.append(
            f"left out, k = {left_out[0]} was missed by {abs(left_out[2] - left_out[1]):.1%} of problems: "
            "do not extrapolate far"
        )
    if failed:
        found.append(
            f"{failed} of {BOOTSTRAPS} resamples had too few usable points and are not in the intervals"
        )
    return found
