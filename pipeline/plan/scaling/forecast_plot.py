"""The picture of ``scale forecast``: NLL over compute, and accuracy over NLL, each with its fit."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.plan.scaling import picture
from pipeline.plan.scaling.downstream import Chain, Points


def draw(file: str, chain: Chain, points: Points, flops: float | None) -> None:
    """Write the picture in the kind that the file's ending says."""
    picture.save(figure(chain, points, flops), file)


def figure(chain: Chain, points: Points, flops: float | None) -> Any:
    """Both fits with their points and, where asked for, the forecast."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    made = Figure(figsize=(12, 5), layout="constrained")
    left, right = made.subplots(1, 2)
    seen = points.flops[points.with_flops]
    ends = [float(seen.min()), float(seen.max()), *([flops] if flops else [])]
    compute = np.geomspace(min(ends), max(ends), 100)
    left.plot(seen, points.nll[points.with_flops], "o", label="points")
    left.plot(compute, [chain.nll(each) for each in compute], "-", label="fit, linear in log C")
    left.set_xscale("log")
    left.set_xlabel("training compute C (FLOP)")
    left.set_ylabel("normalised NLL of the right answer (nats)")
    left.set_title("compute to loss", fontsize=11)
    known = points.nll[points.with_accuracy]
    nll = [float(known.min()), float(known.max()), *([chain.nll(flops)] if flops else [])]
    span = np.linspace(min(nll), max(nll), 200)
    right.plot(known, points.accuracy[points.with_accuracy], "o", label="points")
    right.plot(span, [chain.accuracy(float(each)) for each in span], "-", label="fit, sigmoid")
    right.axhline(chain.chance, color="grey", linestyle=":", label=f"chance, {chain.chance:g}")
    right.invert_xaxis()
    right.set_xlabel("normalised NLL of the right answer (nats), falling")
    right.set_ylabel("accuracy (share)")
    right.set_title("loss to accuracy", fontsize=11)
    if flops:
        reached = chain.nll(flops)
        left.plot([flops], [reached], "*", markersize=14, color="crimson", label="forecast")
        right.plot(
            [reached], [chain.accuracy(reached)], "*", markersize=14, color="crimson", label="forecast"
        )
    for axes in (left, right):
        axes.grid(True, alpha=0.3)
        axes.legend(fontsize=9)
    return made
