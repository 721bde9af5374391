"""Where the parts of a predicted step are from: the formulas of :mod:`pipeline.plan.training.speed` with what went in."""

from __future__ import annotations

from pipeline.plan.hardware import Gpu
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.activations import forward_bytes, tokens
from pipeline.plan.training.efficiency import Constants
from pipeline.plan.training.flops import computed
from pipeline.plan.training.layout import Layout, Work
from pipeline.plan.training.speed import PRECISIONS, SOURCE, routed_bytes


def derivation(
    part: str, shape: Shape, layout: Layout, work: Work, gpu: Gpu, constants: Constants
) -> tuple[str, tuple[Quantity, ...]]:
    """Formula of a part of the step, and what went into it."""
    precision = PRECISIONS[work.precision]
    flop = computed(shape, layout, work)
    positions = given(
        "positions of a step on a GPU", layout.micro_batches * tokens(layout, work), "token", layout.words()
    )
    split = given("GPUs that share a micro batch's layers (TP x PP)", layout.tensor * layout.pipeline)

    def fitted(name: str, words: str) -> Quantity:
        return given(words, getattr(constants, name), "", "fitted; published/training.json")

    def best(of: str) -> Quantity:
        return gpu.quantity(of)

    share = "share of the peak that is reached"
    hidden = "share that computing does not hide"
    moved = "bytes moved / link speed x share that is not hidden"
    known: dict[str, tuple[str, tuple[Quantity, ...]]] = {
        "products": (
            "positions x FLOP of matrices a token / (TP x PP) / (peak x share)",
            (
                positions,
                given(
                    "FLOP of matrices a token, as run",
                    flop.linear + flop.head,
                    "FLOP/token",
                    "plan/training/flops.py",
                ),
                split,
                best(precision),
                fitted("fp8" if precision == "fp8" else "bf16", share),
            ),
        ),
        "mixing": (
            "positions x FLOP of attention a token / (TP x PP) / (bf16 peak x share)",
            (
                positions,
                given(
                    "FLOP of attention a token, as run", flop.mixing, "FLOP/token", "plan/training/flops.py"
                ),
                split,
                best("bf16"),
                fitted("bf16", share),
            ),
        ),
        "traffic": (
            "positions x bytes kept a token x times that they cross the bus / memory bandwidth",
            (
                positions,
                given(
                    "bytes kept a token on a GPU",
                    forward_bytes(shape, layout, work),
                    "B",
                    "plan/training/activations.py",
                ),
                fitted("traffic", "times that they cross the bus"),
                best("bandwidth"),
            ),
        ),
        "experts": (
            "positions / (TP x PP) x 4 x bytes routed a token x factor / NVLink",
            (
                positions,
                split,
                given("bytes routed a token, one way", routed_bytes(shape), "B", SOURCE),
                fitted(
                    "experts_automodel" if work.states == "automodel" else "experts",
                    "factor of the framework",
                ),
                best("nvlink"),
            ),
        ),
        "tensor": (f"all-reduces of activations: {moved}", (fitted("tensor", hidden),)),
        "context": (f"keys and values of the other ranks: {moved}", (fitted("context", hidden),)),
        "sharding": (f"gathered weights and scattered gradients: {moved}", (fitted("sharding", hidden),)),
        "bubble": (
            "time of a micro batch x (PP - 1) / VP",
            (given("PP", layout.pipeline), given("VP", layout.virtual)),
        ),
        "reduction": (f"gradients over data-parallel ranks: {moved}", (fitted("sharding", hidden),)),
        "optimiser": ("bytes of states read and written / memory bandwidth", (best("bandwidth"),)),
    }
    return known[part]
