"""Where runs do not carry the conclusion that is asked of them, in words.

Every warning names what was seen, the limit that it is held to, and what would help.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.special import fdtrc

from pipeline.plan.scaling.fit import Fit
from pipeline.plan.scaling.isoflop import IsoFlop, budgets
from pipeline.plan.scaling.runs import Runs

FARTHEST = 10.0  # times the largest compute that was run
WIDEST = 4.0  # ratio of a band's ends
SIGNIFICANT = 0.01
EPOCHS = 4.0  # Muennighoff et al. 2023, arXiv 2305.16264: up to here repeats are almost as good as new data
OFF_SIX = 0.05


def of_runs(runs: Runs, found: IsoFlop) -> Iterator[str]:
    """About the runs themselves: budgets without a minimum, too few of them, repeats, another FLOP count."""
    groups = budgets(runs)
    counted = {each.rows: each for each in found.parabolas}
    for group in groups:
        flops = float(np.exp(np.log(runs.flops[list(group)]).mean()))
        if group not in counted:
            yield f"the budget of {flops:.3g} FLOP has fewer than 3 sizes ({len(group)} runs): it has no parabola"
        elif counted[group].fault:
            yield f"the budget of {flops:.3g} FLOP does not count: {counted[group].fault}"
    if len(found.counting) < 3:
        yield (
            f"{len(found.counting)} budgets with a minimum: a power law over them cannot be checked by itself; run 4 or more"
        )
    spread = float(runs.flops.max() / runs.flops.min())
    if spread < FARTHEST:
        yield f"the runs span a factor of {spread:.3g} in compute; exponents from less than {FARTHEST:g} are loose"
    repeats = np.nanmax(runs.epochs) if np.isfinite(runs.epochs).any() else 0.0
    if repeats > EPOCHS:
        yield (
            f"some runs saw their data {repeats:.3g} times: beyond {EPOCHS:g} epochs repeats are worth less than new data "
            "(Muennighoff et al. 2023), and the law counts them alike"
        )
    if abs(runs.per_token / 6 - 1) > OFF_SIX:
        yield (
            f"the runs' compute is {runs.per_token:.3g} x parameters x tokens, which is used in place of 6; published laws use 6"
        )


def of_extrapolation(runs: Runs, flops: float) -> Iterator[str]:
    """About a budget far beyond the runs."""
    factor = flops / float(runs.flops.max())
    if factor > FARTHEST:
        yield (
            f"{flops:.3g} FLOP is {factor:,.3g} times the largest run: beyond {FARTHEST:g} times the bands hold only if "
            "the law itself goes on, which these runs cannot tell"
        )


def of_bands(bands: dict[str, tuple[float, float] | None]) -> Iterator[str]:
    """About intervals that are missing, or too wide to plan by."""
    for name, band in bands.items():
        if band is None:
            yield f"{name}: the runs leave it open (no interval can be given)"
        elif band[0] <= 0 or band[1] / band[0] > WIDEST:
            yield f"{name}: the interval from {band[0]:.3g} to {band[1]:.3g} is too wide to plan by; run more budgets"


def of_fit(fitted: Fit) -> Iterator[str]:
    """About the law: no degree of freedom, coefficients without meaning, residuals with a pattern."""
    law = fitted.law
    if fitted.freedom < 1:
        yield "as many runs as coefficients: the law goes through all of them, and there is no error to tell"
        return
    lowest = float(np.exp(fitted.design.y.min()))
    if law.e < 0.01 * lowest:
        yield "E is next to nothing: the runs do not tell a loss that no size and data would take away"
    for name, exponent in (("alpha", law.alpha), ("beta", law.beta)):
        if exponent <= 0:
            yield f"{name} is {exponent:.3g}: loss does not fall with {'size' if name == 'alpha' else 'data'} here"
        elif exponent > 1.5:
            yield f"{name} is {exponent:.3g}, far above what is published (0.28 to 0.37): the runs hardly tell it"
    chance = pattern(fitted)
    if chance is not None and chance < SIGNIFICANT:
        yield (
            f"the residuals have a pattern over size and data (F-test, p = {chance:.2g}): the law's form, the "
            "learning rates or the batch do not suit all runs"
        )


def pattern(fitted: Fit) -> float | None:
    """How likely residuals without a pattern would look so curved in log N and log D; None for too few runs.

    An F-test of the quadratic terms that the law has no coefficients for.
    """
    design = fitted.design
    terms = np.stack([design.n**2, design.d**2, design.n * design.d], axis=1)
    plain = np.stack([np.ones_like(design.n), design.n, design.d], axis=1)
    both = np.concatenate([plain, terms], axis=1)
    left = len(design.n) - 6
    rank = int(np.linalg.matrix_rank(both)) - int(np.linalg.matrix_rank(plain))
    if left < 4 or rank < 1:
        return None
    squares = [
        float(
            ((fitted.residuals - basis @ np.linalg.lstsq(basis, fitted.residuals, rcond=None)[0]) ** 2).sum()
        )
        for basis in (plain, both)
    ]
    if squares[1] <= 0:
        return None
    ratio = (squares[0] - squares[1]) / rank / (squares[1] / left)
    return float(fdtrc(rank, left, max(ratio, 0.0)))
