"""The picture of ``scale train``: IsoFLOP curves with their optima, and the optimum over compute by every law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.plan.quantity import Quantity
from pipeline.plan.scaling import picture
from pipeline.plan.scaling.laws import BESIROGLU_FIT, Optimum, Parametric, published
from pipeline.plan.scaling.own import Own
from pipeline.plan.scaling.show import count

SPAN = 8.0  # times below and above the optimum that a curve without runs is drawn over
COLOURS = "viridis"


def draw(file: str, budget: Quantity | None, own: Own | None) -> None:
    """Write the picture in the kind that the file's ending says."""
    picture.save(figure(budget, own), file)


def figure(budget: Quantity | None, own: Own | None) -> Any:
    """Left: loss over size at fixed compute, in logs; right: compute-optimal size over compute, by every law."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    made = Figure(figsize=(13.5, 5.6), layout="constrained")
    curves, optima = made.subplots(1, 2)
    if own is not None and own.isoflop.parabolas:
        _measured(curves, own)
    else:
        _published(curves, budget)
    _laws(optima, budget, own)
    return made


def _measured(axes: Any, own: Own) -> None:
    """The runs, their parabolas, and the line through the minima."""
    parabolas = own.isoflop.parabolas
    for parabola, colour in zip(parabolas, _colours(len(parabolas)), strict=True):
        rows = list(parabola.rows)
        label = f"{parabola.flops:.2g} FLOP" + ("" if parabola.fault is None else " (not counted)")
        axes.plot(own.runs.parameters[rows], own.runs.loss[rows], "o", color=colour, label=label)
        sizes = np.geomspace(parabola.smallest, parabola.largest, 80)
        axes.plot(sizes, [parabola.at(size) for size in sizes], "-", color=colour, linewidth=1.3)
    counting = own.isoflop.counting
    if counting:
        axes.plot(
            [each.parameters for each in counting],
            [each.loss for each in counting],
            "k--*",
            markersize=11,
            linewidth=1.2,
            label="optimum of each budget",
        )
    if own.predictions:
        axes.plot(
            own.held_out.parameters, own.held_out.loss, "D", color="crimson", label="held-out run, measured"
        )
        axes.plot(
            own.held_out.parameters,
            [each.predicted for each in own.predictions],
            "x",
            color="crimson",
            markersize=9,
            label="held-out run, predicted",
        )
    _label(
        axes, "model size N (parameters)", "loss (nats per token)", f"IsoFLOP curves of {Path(own.file).name}"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _count_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    axes.legend(fontsize=8, title="training compute")


def _published(axes: Any, budget: Quantity | None) -> None:
    """Curves of the replicated parametric law at the budget, and at a tenth, a hundredth and ten times of it."""
    centre = budget.value if budget else 1e21
    law: Parametric = BESIROGLU_FIT
    points = []
    for flops, colour in zip((centre * step for step in (0.01, 0.1, 1, 10)), _colours(4), strict=True):
        n, d = law.optimum(flops)
        sizes = np.geomspace(n / SPAN, n * SPAN, 120)
        loss = [law.loss(size, flops / (law.per_token * size)) for size in sizes]
        axes.plot(sizes, loss, color=colour, label=f"{flops:.3g} FLOP")
        points.append((n, law.loss(n, d)))
    axes.plot(
        *zip(*points, strict=True), "k--*", markersize=11, linewidth=1.2, label="optimum of each budget"
    )
    _label(
        axes, "model size N (parameters)", "loss (nats per token)", "IsoFLOP curves, Besiroglu et al. 2024"
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    _count_ticks(axes.xaxis)
    _plain_ticks(axes.yaxis)
    axes.legend(fontsize=8, title="training compute")


def _laws(axes: Any, budget: Quantity | None, own: Own | None) -> None:
    """Compute-optimal size by every law, with bands; the budget and the minima of the runs."""
    ends = [budget.value / 100, budget.value * 10] if budget else []
    if own is not None:
        ends += [float(own.runs.flops.min()), float(own.runs.flops.max()) * 10]
    low, high = (min(ends), max(ends)) if ends else (1e18, 1e24)
    compute = np.geomspace(low, high, 13)
    rows: list[Sequence[Optimum]] = []
    for flops in compute:
        point = Quantity("training compute", float(flops), "FLOP")
        rows.append([*(own.optima(point) if own else ()), *published(point)])
    names = [each.law for each in rows[0]]
    for place, name in enumerate(names):
        line = [row[place] for row in rows]
        mine = name.startswith("your runs")
        drawn = axes.plot(
            compute,
            [each.parameters.value for each in line],
            "-" if mine else "--",
            linewidth=2 if mine else 1.2,
            label=name,
        )
        bands = [each.parameters_band for each in line]
        if all(bands) and (mine or place == (len(names) - 7)):
            lower, upper = zip(*(each for each in bands if each), strict=True)
            axes.fill_between(compute, lower, upper, alpha=0.18, color=drawn[0].get_color(), linewidth=0)
    if own is not None and own.isoflop.counting:
        axes.plot(
            [each.flops for each in own.isoflop.counting],
            [each.parameters for each in own.isoflop.counting],
            "k*",
            markersize=11,
            label="minima of your runs",
        )
    if budget is not None:
        axes.axvline(budget.value, color="grey", linewidth=1, linestyle=":", label=f"budget, {budget}")
    axes.set_xscale("log")
    axes.set_yscale("log")
    _count_ticks(axes.yaxis)
    _label(
        axes,
        "training compute C (FLOP)",
        "compute-optimal size N (parameters)",
        "Optimum by law (shaded: interval)",
    )
    axes.legend(fontsize=8)


def _label(axes: Any, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=11)
    axes.grid(True, which="major", alpha=0.3)


def _colours(number: int) -> list[Any]:
    import matplotlib

    return [matplotlib.colormaps[COLOURS](value) for value in np.linspace(0.05, 0.85, number)]


def _count_ticks(axis: Any) -> None:
    """400M in the place of 4 x 10^8; within a decade at 2 and 5 as well."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: count(value)))
    axis.set_minor_formatter(NullFormatter())


def _plain_ticks(axis: Any) -> None:
    """Losses as they are, over less than a decade."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, NullLocator

    axis.set_major_locator(MaxNLocator(7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}" if math.isfinite(value) else ""))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
