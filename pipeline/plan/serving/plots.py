"""Pictures of what the answers say: how the optimum moves with demand, and how coverage grows with samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pipeline.plan.quantity import Quantity
from pipeline.plan.scaling import picture
from pipeline.plan.serving.optimum import Optimum
from pipeline.plan.serving.sampling import Fit

BLUE, ORANGE, GREY = "#1f5fa8", "#c8631b", "#777777"


def demand(path: str, found: Sequence[Optimum], marked: Optimum, title: str, money: bool) -> None:
    """Cheapest size and tokens against demand, beside the compute-optimal, and what is saved by choosing them."""
    with _figure(path, title, 2) as (left, right):
        x = [one.demand.value for one in found]
        left.plot(x, [one.parameters.value for one in found], color=BLUE, label="cheapest parameters")
        left.axhline(
            marked.plain_parameters.value,
            color=BLUE,
            linestyle=":",
            label=f"compute-optimal: {_plural(marked.plain_parameters)}",
        )
        left.plot(x, [one.tokens.value for one in found], color=ORANGE, label="its training tokens")
        left.axhline(
            marked.plain_tokens.value,
            color=ORANGE,
            linestyle=":",
            label=f"compute-optimal: {_plural(marked.plain_tokens)}",
        )
        for quantity, color, lift in ((marked.parameters, BLUE, -14), (marked.tokens, ORANGE, 6)):
            if marked.demand.value:
                left.plot(marked.demand.value, quantity.value, "o", color=color)
                left.annotate(
                    _plural(quantity),
                    (marked.demand.value, quantity.value),
                    textcoords="offset points",
                    xytext=(-8, lift),
                    ha="right",
                    color=color,
                )
        left.set(
            xscale="log",
            yscale="log",
            ylabel="parameters, tokens",
            title="the cheapest model of this quality",
        )
        right.plot(x, [one.saving.value for one in found], color=BLUE)
        if marked.demand.value:
            right.plot(marked.demand.value, marked.saving.value, "o", color=BLUE)
            right.annotate(
                f"{marked.saving.value:.3g}%",
                (marked.demand.value, marked.saving.value),
                textcoords="offset points",
                xytext=(-8, 6),
                ha="right",
                color=BLUE,
            )
        right.set(
            xscale="log",
            ylabel=f"{'money' if money else 'FLOP'} saved (%)",
            title="saving against the compute-optimal model",
        )
        right.set_ylim(bottom=0)
        for axes in (left, right):
            axes.set_xlabel("tokens served over the model's life (input + output)")
        left.legend(fontsize=8, loc="upper left")


def coverage(path: str, fit: Fit, title: str, large: float | None) -> None:
    """Measured coverage with its standard errors, the fitted curve, and a large model's accuracy at one sample."""
    with _figure(path, title, 1) as (axes,):
        ks = [point[0] for point in fit.points]
        far = [ks[0] * (4 * ks[-1] / ks[0]) ** (step / 100) for step in range(101)]
        axes.errorbar(
            ks,
            [100 * point[1] for point in fit.points],
            [100 * point[2] for point in fit.points],
            fmt="o",
            color=BLUE,
            capsize=3,
            label="measured (± standard error over problems)",
        )
        axes.plot(
            far,
            [100 * fit.curve.coverage(k) for k in far],
            color=ORANGE,
            label=f"exp(a k^b), a = {fit.curve.a:.3g}, b = {fit.curve.b:.3g}",
        )
        axes.axvspan(ks[-1], far[-1], color=GREY, alpha=0.12, label="extrapolated")
        if large is not None:
            axes.axhline(
                100 * large, color=GREY, linestyle="--", label=f"large model, one sample: {large:.1%}"
            )
        axes.set(
            xscale="log",
            xlabel="samples of each problem, k",
            ylabel="coverage: problems solved by one of k samples (%)",
            ylim=(0, 100),
        )
        axes.legend(fontsize=8, loc="lower right")


def _plural(quantity: Quantity) -> str:
    """13.6B parameters: a legend is a phrase, where a column of figures has the bare unit."""
    return f"{quantity}s"


@contextmanager
def _figure(path: str, title: str, panels: int) -> Iterator[tuple[Any, ...]]:
    """Axes of a picture that is written at the end, without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6 * panels, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    yield tuple(axes)
    for one in axes:
        one.grid(True, alpha=0.25)
        for side in ("top", "right"):
            one.spines[side].set_visible(False)
    figure.suptitle(title, fontsize=11)
    picture.save(figure, path)
