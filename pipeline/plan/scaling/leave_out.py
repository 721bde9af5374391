"""How far a law is off on runs that it was not fitted to.

Two questions, two splits.  *One budget out*: each budget in turn is predicted by a law of the others, which tells how well the law
fills gaps.  *Largest compute out*: the largest budget is predicted by a law of the smaller ones, which is what an extrapolation does.
Errors are |predicted - measured| / measured of the loss, of the runs that were left out only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pipeline.errors import UserError
from pipeline.plan.scaling import isoflop
from pipeline.plan.scaling.fit import fit
from pipeline.plan.scaling.objective import PARAMETERS, Array
from pipeline.plan.scaling.runs import Runs


@dataclass(frozen=True)
class Error:
    """Relative errors of the loss on left-out runs; ``factor``: how far beyond the fitted compute the largest of them lies."""

    split: str
    runs: int
    mean: float
    largest: float
    factor: float


def errors(runs: Runs) -> list[Error]:
    """Both splits, as far as enough runs remain for the five coefficients and one degree of freedom."""
    groups = isoflop.budgets(runs)
    if len(groups) < 2:
        return []
    tried = [_left_out(runs, group) for group in groups]
    found = []
    whole = [each for each in tried if each is not None]
    if whole:
        off = np.concatenate([each for each, _ in whole])
        factor = max(beyond for _, beyond in whole)
        found.append(Error("one budget out", len(off), float(off.mean()), float(off.max()), factor))
    last = tried[-1]
    if last is not None:
        off, factor = last
        found.append(Error("largest compute out", len(off), float(off.mean()), float(off.max()), factor))
    return found


def _left_out(runs: Runs, group: tuple[int, ...]) -> tuple[Array, float] | None:
    kept = [row for row in range(len(runs)) if row not in group]
    if len(kept) <= PARAMETERS:
        return None
    seen, left = runs.take(kept), runs.take(list(group))
    try:
        law = fit(seen.parameters, seen.tokens, seen.loss, starts=2).law
    except UserError:  # sizes or lengths of too few kinds remain
        return None
    predicted = np.array([law.loss(n, d) for n, d in zip(left.parameters, left.tokens, strict=True)])
    return np.abs(predicted / left.loss - 1), float(left.flops.max() / seen.flops.max())
