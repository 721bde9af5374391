"""``lifecycle scale forecast``: task accuracy of a model that has not been trained.

lifecycle scale forecast --points points.csv --flops 3.8e25 --chance 0.25

The fits are :mod:`~pipeline.plan.scaling.downstream`'s; errors are those on points left out, one at a time, and on the largest compute.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.scaling import picture
from pipeline.plan.scaling.budget import compute, share, whole
from pipeline.plan.scaling.downstream import Chain, Missed, Points, errors, fit_chain, interval, read_points

SOURCE = "Dubey et al. 2024 (Llama 3), section 3.2.1"
FARTHEST = 100.0  # times the largest compute of the points
FEWEST_DRAWS = 50


def forecast(options: Namespace) -> int:
    """Print both fits, what they miss on points left out, and the forecast."""
    chance, ceiling = _ends(options.chance, options.ceiling)
    points = read_points(Path(options.points))
    flops = compute(options.flops, "--flops") if options.flops is not None else None
    level = share(options.level, "--level")
    if level == 1:
        raise UserError("--level 1: no interval holds everything; e.g. 0.9")
    draws, seed = whole(options.bootstrap, "--bootstrap"), whole(options.seed, "--seed")
    if draws < FEWEST_DRAWS:
        raise UserError(f"--bootstrap {draws}: percentiles need at least {FEWEST_DRAWS} draws")
    if options.plot:
        picture.check(options.plot)
    chain = fit_chain(points, chance, ceiling)
    missed = errors(points, chance, ceiling)
    found = _forecast(chain, points, flops, level, draws, seed) if flops is not None else {}
    warnings = list(_warnings(chain, points, flops))
    if options.plot:
        from pipeline.plan.scaling.forecast_plot import draw

        draw(options.plot, chain, points, flops)
    if options.json:
        plain = {
            name: value.as_dict() if isinstance(value, Quantity) else value for name, value in found.items()
        }
        print(
            strict_json.dumps(
                {
                    "fit": asdict(chain),
                    "forecast": plain or None,
                    "left_out_errors": [asdict(each) for each in missed],
                    "warnings": warnings,
                },
                indent=1,
            )
        )
    else:
        _print(chain, points, missed, found, warnings, options.explain)
        if options.plot:
            print(f"\nplot: {options.plot}")
    return 0


def _forecast(
    chain: Chain, points: Points, flops: float, level: float, draws: int, seed: int
) -> dict[str, Any]:
    """NLL and accuracy at this compute, with intervals by a bootstrap of both fits' residuals."""
    inputs = (
        given("training compute", flops, "FLOP", "--flops"),
        *(
            given(name, getattr(chain, name), "", f"fitted to {len(points.names)} points")
            for name in ("p", "q")
        ),
    )
    nll = Quantity("NLL of the right answer", chain.nll(flops), "", "p + q log10 C", inputs, SOURCE)
    curve = (
        *(
            given(name, getattr(chain, name), "", f"fitted to {len(points.names)} points")
            for name in ("k", "m")
        ),
        given("chance", chain.chance, "", "--chance"),
        given("ceiling", chain.ceiling, "", "--ceiling"),
    )
    accuracy = Quantity(
        "accuracy",
        chain.accuracy(nll.value),
        "",
        "chance + (ceiling - chance) / (1 + exp(k (NLL - m)))",
        (nll, *curve),
        SOURCE,
    )
    return {
        "nll": nll,
        "accuracy": accuracy,
        "interval": interval(chain, points, flops, level, draws, seed),
        "level": level,
    }


def _warnings(chain: Chain, points: Points, flops: float | None) -> list[str]:
    told = []
    if chain.q >= 0:
        told.append("NLL does not fall with compute in these points: there is nothing to extrapolate")
    if chain.k <= 0:
        told.append("accuracy does not rise as NLL falls: the sigmoid is upside down")
    seen = points.accuracy[points.with_accuracy]
    if seen.max() < chain.chance + 0.25 * (chain.ceiling - chain.chance):
        told.append(
            f"no point is far above chance (the best is {seen.max():.2f}): where the sigmoid rises is a guess"
        )
    if flops is not None:
        factor = flops / float(points.flops[points.with_flops].max())
        if factor > FARTHEST:
            told.append(
                f"{flops:.3g} FLOP is {factor:,.3g} times the largest point: the straight line is taken far beyond what was seen"
            )
    return told


def _ends(chance: str, ceiling: str) -> tuple[float, float]:
    low = 0.0 if chance.strip() in ("0", "0.0") else share(chance, "--chance")
    high = share(ceiling, "--ceiling")
    if low >= high:
        raise UserError(f"--chance {chance} must lie below --ceiling {ceiling}")
    return low, high


def _print(
    chain: Chain,
    points: Points,
    missed: Sequence[Missed],
    found: dict[str, Any],
    warnings: Sequence[str],
    explain: bool,
) -> None:
    from pipeline.plan.scaling.show import console, plain_table

    out = console()
    out.print(
        f"NLL = {chain.p:.4g} {chain.q:+.4g} log10 C over {int(points.with_flops.sum())} points; accuracy = {chain.chance:g} + "
        f"{chain.ceiling - chain.chance:g} / (1 + exp({chain.k:.4g} (NLL - {chain.m:.4g}))) over "
        f"{int(points.with_accuracy.sum())} points",
        markup=False,
        soft_wrap=True,
    )
    if missed:
        table = plain_table(
            "left out of both fits", "points", "NLL, mean error", "accuracy, mean error", "largest"
        )
        for each in missed:
            table.add_row(
                each.split, str(each.points), f"{each.nll:.1%}", f"{each.accuracy:.3f}", f"{each.largest:.3f}"
            )
        out.print(table)
    else:
        out.print("too few points to leave any out: there is no error of prediction to tell")
    if found:
        low, high = found["interval"]
        out.print(
            f"forecast at {found['nll'].inputs[0]}: NLL {found['nll']}, accuracy {found['accuracy'].value:.3f} "
            f"({found['level']:.0%} of resamples: {low:.3f} to {high:.3f})",
            markup=False,
            soft_wrap=True,
        )
    for warning in warnings:
        out.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if explain and found:
        for line in found["accuracy"].derivation():
            out.print(line, markup=False, soft_wrap=True)
