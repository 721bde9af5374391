"""What ``scale train`` prints: the laws beside each other, the user's own fit, derivations, and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from pipeline import terminal
from pipeline.plan.quantity import Quantity, words
from pipeline.plan.scaling.laws import Optimum
from pipeline.plan.scaling.own import Own


def console() -> Console:
    """Where tables go; in a log, as wide as their content."""
    found = terminal.console()
    return found if found.is_terminal else terminal.console(width=200)


def plain_table(*headings: str) -> Table:
    """A table without lines; the first column is text, the others are figures."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="right" if place else "left", overflow="fold")
    return table


def count(value: float) -> str:
    """A number of parameters or tokens without its unit, which stands in the heading."""
    return words(value, "token").removesuffix(" token")


def band(ends: tuple[float, float] | None) -> str:
    """The two ends of a band, or a dash."""
    return f"{count(ends[0])} to {count(ends[1])}" if ends else "-"


def laws_table(optima: Sequence[Optimum]) -> Table:
    """Every law's compute-optimal point."""
    table = plain_table("law", "parameters", "band", "tokens", "band", "tokens/parameter", "loss (nat/token)")
    for each in optima:
        ratio = each.ratio.value
        table.add_row(
            each.law,
            count(each.parameters.value),
            band(each.parameters_band),
            count(each.tokens.value),
            band(each.tokens_band),
            f"{ratio:.3g}" if ratio < 1000 else f"{ratio:,.0f}",
            f"{each.loss.value:.3f}" if each.loss else "-",
        )
    return table


def notes(optima: Sequence[Optimum]) -> list[str]:
    """What each band means, and what to know of each law."""
    told = []
    for each in optima:
        parts = [f"band: {each.band_means}" if each.parameters_band else "", each.note]
        if any(parts):
            told.append(f"{each.law}: {'; '.join(part for part in parts if part)}")
    return told


def own_tables(own: Own) -> list[tuple[str, Table]]:
    """The user's fit: coefficients, budgets, errors on runs left out, held-out runs."""
    law = own.fit.law
    fitted = plain_table("coefficient", "value", "interval")
    values = {
        "E": law.e,
        "A": law.a,
        "B": law.b,
        "alpha": law.alpha,
        "beta": law.beta,
        "exponent of N over C": law.beta / (law.alpha + law.beta),
    }
    for name, value in values.items():
        ends = own.intervals.get(name)
        fitted.add_row(name, f"{value:.4g}", f"{ends[0]:.4g} to {ends[1]:.4g}" if ends else "-")
    found = [
        (f"L(N, D) = E + A/N^alpha + B/D^beta over {len(own.runs)} runs; {own.band_means}", fitted),
    ]
    if own.isoflop.parabolas:
        minima = plain_table("budget (FLOP)", "runs", "parameters", "tokens", "loss", "minimum")
        for each in own.isoflop.parabolas:
            cells = (
                [count(each.parameters), count(each.tokens), f"{each.loss:.4f}", "inside"]
                if each.fault is None
                else ["-", "-", "-", "not counted"]
            )
            minima.add_row(f"{each.flops:.3g}", str(len(each.rows)), *cells)
        found.append((_isoflop_words(own), minima))
    if own.errors:
        errors = plain_table("left out of the fit", "runs", "mean error", "largest error", "beyond the fit")
        for off in own.errors:
            errors.add_row(
                off.split,
                str(off.runs),
                f"{off.mean:.2%}",
                f"{off.largest:.2%}",
                f"{off.factor:.3g}x compute",
            )
        found.append(("errors of the loss on runs that the fit did not see", errors))
    if own.predictions:
        held = plain_table("held-out run", "FLOP", "predicted", "interval", "measured", "error")
        for run in own.predictions:
            ends = run.interval
            held.add_row(
                run.name,
                f"{run.flops:.3g}",
                f"{run.predicted:.4f}",
                f"{ends[0]:.4f} to {ends[1]:.4f}" if ends else "-",
                f"{run.measured:.4f}",
                f"{run.error:+.2%}",
            )
        found.append(
            ("runs that were held out, predicted by the parametric law, which has not seen them", held)
        )
    return found


def _isoflop_words(own: Own) -> str:
    tokens = own.isoflop.tokens
    if tokens is None:
        return "IsoFLOP parabolas: too few minima for a power law"
    return f"IsoFLOP parabolas: tokens = {tokens.coefficient:.3g} C^{tokens.exponent:.3f} over {len(own.isoflop.counting)} minima"


def as_dict(
    budget: Quantity | None, optima: Sequence[Optimum], own: Own | None, warnings: Sequence[str]
) -> dict[str, Any]:
    """Everything, for ``--json``."""
    found: dict[str, Any] = {"budget": budget.as_dict() if budget else None}
    found["laws"] = [
        {
            "law": each.law,
            "parameters": each.parameters.as_dict(),
            "parameters_band": each.parameters_band,
            "tokens": each.tokens.as_dict(),
            "tokens_band": each.tokens_band,
            "loss": each.loss.as_dict() if each.loss else None,
            "band_means": each.band_means,
            "note": each.note,
        }
        for each in optima
    ]
    if own is not None:
        found["runs"] = _own_dict(own)
    found["warnings"] = list(warnings)
    return found


def _own_dict(own: Own) -> dict[str, Any]:
    law, minima = own.fit.law, own.isoflop
    noise = own.fit.noise
    return {
        "file": own.file,
        "runs": len(own.runs),
        "fit": {"E": law.e, "A": law.a, "B": law.b, "alpha": law.alpha, "beta": law.beta},
        "noise_of_log_loss": noise if math.isfinite(noise) else None,
        "intervals": own.intervals,
        "interval_means": own.band_means,
        "isoflop": {
            "tokens": minima.tokens.__dict__ if minima.tokens else None,
            "loss": minima.loss.__dict__ if minima.loss else None,
            "minima": [
                {
                    "flops": each.flops,
                    "runs": len(each.rows),
                    "fault": each.fault,
                    "parameters": each.parameters if each.fault is None else None,
                    "tokens": each.tokens if each.fault is None else None,
                    "loss": each.loss if each.fault is None else None,
                }
                for each in minima.parabolas
            ],
        },
        "left_out_errors": [each.__dict__ for each in own.errors],
        "held_out": [{**each.__dict__, "error": each.error} for each in own.predictions],
    }
