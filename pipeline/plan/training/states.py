"""Parameters on one GPU, and what the model's states cost there.

Bytes a parameter, by convention (weights, gradients, master weights, AdamW's two moments):

``megatron``   2, 4, 4, 8: 18 B of mixed precision, and with the distributed optimiser (ZeRO-1) 6 + 12/(DP x CP).
``automodel``  4, 4, 0, 8 with fp32 weights under autocast, or 2, 2, 0, 4 with bf16 weights: this project's own engine.
``zero``       2, 2, 4, 8: the 16 B that Rajbhandari et al. 2020 ("ZeRO", section 3.1, K = 12) compute with.

Stages of ZeRO divide, by the data x context ranks, optimiser states and master weights (1), gradients (2), weights (3).
Frozen weights cost their own bytes and nothing else; those of QLoRA's layers are NF4 (Dettmers et al. 2023, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.layout import Layout, Work

NF4 = 0.55  # bytes a weight, with its scales


@dataclass(frozen=True)
class Bytes:
    """Bytes that one trained parameter costs, unsharded."""

    weight: float
    gradient: float
    master: float
    moments: float


def per_parameter(work: Work) -> Bytes:
    """The bytes of the work's convention and precision."""
    if work.precision == "fp32":
        return Bytes(4, 4, 0, 8)
    if work.states == "automodel":
        held = 2.0 if work.precision == "bf16-weights" else 4.0
        return Bytes(held, held, 0, 2 * held)
    return Bytes(2, 4, 4, 8) if work.states == "megatron" else Bytes(2, 2, 4, 8)


@dataclass(frozen=True)
class Counts:
    """Parameters by where they go: all layers without experts, all experts, the embeddings on either side."""

    layers: int
    experts: int
    embedding: int
    head: int


@lru_cache(maxsize=256)
def counts(shape: Shape, reward: bool = False) -> Counts:
    """The parameters of a shape; a reward model's head has one output instead of the vocabulary."""
    routed = 0
    for layer in shape.layers:
        for part in layer.parts:
            routed += sum(linear.parameters for linear in part.linears if linear.active < linear.copies)
    head = 0 if reward or shape.tied else shape.head_parameters
    return Counts(shape.layer_parameters - routed, routed, shape.embedding_parameters + shape.width, head)


@dataclass(frozen=True)
class Held:
    """Parameters of one GPU: of layers, of experts, of embeddings."""

    layers: float
    experts: float
    embeddings: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.layers + self.experts + self.embeddings


def held(shape: Shape, layout: Layout, work: Work, last: bool) -> Held:
    """Parameters of a GPU of the first or the ``last`` pipeline stage, before sharding.

    The first stage has the input embedding, the last the output embedding, of which a tied one is a copy.
    """
    all_of = counts(shape, work.kind == "reward")
    if layout.pipeline == 1:
        edges = all_of.embedding + all_of.head
    elif last:
        edges = 0 if work.kind == "reward" else shape.head_parameters
    else:
        edges = all_of.embedding
    spread = layout.expert if layout.expert > 1 else layout.tensor
    return Held(
        all_of.layers / (layout.pipeline * layout.tensor),
        all_of.experts / (layout.pipeline * spread),
        edges / layout.tensor,
    )


@lru_cache(maxsize=256)
def _adapters(shape: Shape, rank: int, targets: tuple[str, ...]) -> int:
    return shape.adapter_parameters(rank, targets)


def adapters(shape: Shape, layout: Layout, work: Work) -> float:
    """Adapter parameters of one GPU; tensor ranks share little of them, and count as if they shared none.

    DoRA adds a magnitude for each output of an adapted matrix (Liu et al. 2024), which is left out as small beside
    the rank's share.
    """
    return _adapters(shape, work.rank, work.targets) / layout.pipeline if work.adapted else 0.0


@dataclass(frozen=True)
class States:
    """Bytes of the model's states on one GPU."""

    weights: float
    gradients: float
    master: float
    optimiser: float
    adapters: float
    reference: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.weights + self.gradients + self.master + self.optimiser + self.adapters + self.reference


def states(shape: Shape, layout: Layout, work: Work, last: bool = False) -> States:
    """Bytes of weights, gradients, master weights, optimiser states, adapters and frozen reference on a GPU."""
    own, each = held(shape, layout, work, last), per_parameter(work)
    stage = ("none", "zero1", "zero2", "zero3").index(layout.sharding)

    def cut(of_dense: float, of_experts: float, from_stage: int) -> float:
        dense, routed = (layout.ranks, layout.expert_ranks) if stage >= from_stage else (1, 1)
        return of_dense / dense + of_experts / routed

    in_layers = NF4 if work.peft == "qlora" else each.weight
    weights = cut(own.layers * in_layers + own.embeddings * each.weight, own.experts * in_layers, 3)
    if work.adapted:
        trained, routed = adapters(shape, layout, work), 0.0
    else:
        trained, routed = own.layers + own.embeddings, own.experts
    copied = work.reference in ("kept", "live") and not work.adapted  # else the policy, its adapter off
    return States(
        weights=weights,
        gradients=cut(trained * each.gradient, routed * each.gradient, 2),
        master=cut(trained * each.master, routed * each.master, 1),
        optimiser=cut(trained * each.moments, routed * each.moments, 1),
        adapters=cut(trained * each.weight, 0.0, 3) if work.adapted else 0.0,
        reference=weights if copied else 0.0,
    )
