"""Bootstrap confidence intervals (Efron & Tibshirani 1993, chapter 13)."""

from __future__ import annotations

from typing import Any

import numpy as np

SEED = 20240
LEVEL = 0.95


def mean_interval(values: Any, resamples: int) -> tuple[float, float, float]:
    """Mean of a sample and its 95% percentile interval; pairs are kept together by passing differences.

    ``values`` is ``float [n]``; with ``n`` of 0 the three figures are NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(SEED).integers(
        0, len(values), size=(resamples, len(values)), dtype=np.int32
    )
    means = values[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(values.mean()), float(low), float(high)


def ratio_interval(sums: Any, counts: Any, resamples: int) -> tuple[float, float, float]:
    """A ratio of totals (a token-weighted mean over examples) and its 95% interval."""
    sums, counts = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if not counts.sum():
        return float("nan"), float("nan"), float("nan")
    draws = np.random.default_rng(SEED).integers(0, len(sums), size=(resamples, len(sums)), dtype=np.int32)
    ratios = sums[draws].sum(axis=1) / np.maximum(counts[draws].sum(axis=1), 1)
    low, high = np.quantile(ratios, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(sums.sum() / counts.sum()), float(low), float(high)
