"""Floating-point operations of a training token: as publications count them, and as the hardware computes them.

A *model* FLOP is one that training needs, however it is done: 6 a token for every parameter that multiplies it (2 forward,
4 backward; the output embedding counts, the input embedding does not) and 12 x layers x width x length x c for attention.
Publications differ in c and in adapters (:data:`ACCOUNTINGS`).  The *hardware* computes more where activations are
recomputed, and less where weights are frozen, whose gradients nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.layout import Layout, Work


def _nemo(shape: Shape, length: int) -> float:
    return shape.training_flops(length, causal=True)


def _nemo_2407(shape: Shape, length: int) -> float:
    return shape.training_flops(length, causal=False)


def _nemo_lora(shape: Shape, length: int) -> float:
    return 4.0 * shape.active_matmul_weights


def _automodel_lora(shape: Shape, length: int) -> float:
    return 2 / 3 * shape.training_flops(length, causal=True)


# How a publication counts, each with its formula in words.
ACCOUNTINGS: dict[str, tuple[Callable[[Shape, int], float], str]] = {
    "nemo": (
        _nemo,
        "6 x (layers + head) + 12 x L x h x s / 2; NeMo from 25.09, and AutoModel's full training",
    ),
    "nemo-24.07": (
        _nemo_2407,
        "6 x (layers + head) + 12 x L x h x s; NeMo 24.07, causal attention counted whole",
    ),
    "nemo-lora": (_nemo_lora, "4 x (layers + head); NeMo's LoRA rows, attention left out"),
    "automodel-lora": (
        _automodel_lora,
        "two thirds of full training, 4 x (layers + head) + 8 x L x h x s / 2; AutoModel's LoRA rows",
    ),
}


def accounted(shape: Shape, length: int, accounting: str = "nemo") -> float:
    """Model FLOP a token by one of :data:`ACCOUNTINGS`."""
    if accounting not in ACCOUNTINGS:
        raise UserError(f"accounting = {accounting!r}: choose one of {', '.join(ACCOUNTINGS)}")
    return ACCOUNTINGS[accounting][0](shape, length)


def accounting_of(work: Work) -> str:
    """The accounting that this project prints model FLOP by: NeMo's, of 25.09 and after."""
    return "nemo-lora" if work.adapted else "nemo"


def model_flops(shape: Shape, work: Work) -> Quantity:
    """Model FLOP a token of the work, with their derivation."""
    name = accounting_of(work)
    return Quantity(
        "model FLOP per token",
        accounted(shape, work.length, name),
        "FLOP/token",
        ACCOUNTINGS[name][1],
        (
            given("active matmul weights", shape.active_matmul_weights, "parameter", shape.name),
            given("sequence length", work.length, "token"),
        ),
        "NeMo performance summaries, 25.09 and after",
    )


@dataclass(frozen=True)
class Computed:
    """FLOP a token that the hardware computes: in the layers' matrices, in the output embedding, and in mixing (attention,
    state spaces).  Model-wide; parallelism divides them."""

    linear: float
    head: float
    mixing: float


def computed(shape: Shape, layout: Layout, work: Work) -> Computed:
    """FLOP a token of a step as it is run.

    Passes over the matrices: forward 1, gradients of the inputs 1, of the weights 1 where they are trained; a
    live reference 1 more.  Full recomputation runs the layers forward once more; selective recomputation half of their
    products with AutoModel (every second one: torchtitan's policy), and with Megatron attention alone, which a flash kernel
    does anyway and which its measured rate contains.
    """
    weights = 2.0 * (shape.active_matmul_weights - shape.head_parameters)
    mixing = shape.attention_flops(work.length, True) + shape.scan_flops(work.length, True)
    own = 2.0 if work.adapted else 3.0
    again, mixed_again = 0.0, 0.0
    if layout.recompute == "full":
        again = mixed_again = 1.0
    elif layout.recompute == "selective":
        again, mixed_again = (0.5, 0.0) if work.states == "automodel" else (0.0, float(not work.flash))
    live = 1.0 if work.reference == "live" else 0.0
    head = 0.0 if work.kind == "reward" else 2.0 * shape.head_parameters * (own + live)
    return Computed(weights * (own + again + live), head, mixing * (3.0 + mixed_again + live))
