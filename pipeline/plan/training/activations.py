"""What the forward pass of a micro batch keeps for the backward pass, and what the loss takes.

``fused`` kernels (Megatron, Transformer Engine), bytes a token and layer of a dense transformer in bf16: the inputs of
both norms and of both groups of matrices 8h, queries and attention's output 4 x (heads x head size), keys and
values 4 x (key heads x head size), the feed-forward's inner tensors 4f; the gated product is computed again.  With as many
key heads as heads and with dropout's masks (2h) this is the 18h + 4f, or 34h with f = 4h, of Korthikanti et al. 2022
(equations 1 to 4); 5 x heads x length more where attention is not a flash kernel and not recomputed.  Tensor
parallelism divides all of it together with sequence parallelism, else what lies between matrices only (their equation 2).

``eager``: what PyTorch keeps of Hugging Face's modules, counted tensor by tensor and held to real graphs in
``tests/stages/core/test_training_activations.py``.  A norm keeps its input and its output in fp32; under autocast every
matrix keeps a bf16 copy of its input of its own; the feed-forward keeps gate, up, the activated gate and the product.

Pipelining: the first stage holds ``1 + (PP - 1)/(PP x VP)`` times the layers' activations divided by PP (Narayanan et al. 2021,
section 2.2), and never more than the micro batches there are; the last has the least in flight, and the loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pipeline.plan.shapes.parts import Layer, Linear, Part
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.layout import Layout, Work

LOWERING = ("o_proj", "out_proj", "down_proj", "fc2_latent_proj")  # back to the model's width
LOSS = (
    12  # bytes x vocabulary a position: log-softmax and two gradients in fp32, at once in the backward pass
)
PARALLEL_LOSS = 10  # of vocabulary-parallel cross-entropy: bf16 logits, fp32 logits, fp32 gradient
BLOCK = 8  # bytes x vocabulary a position of a block: bf16 and fp32 logits, bf16 gradient
BLOCK_BYTES = 2**30  # of a block's fp32 logits, and 512 positions at least (engines/automodel/linear_loss.py)


@dataclass(frozen=True)
class Kept:
    """Bytes a token, all layers added up: ``outer`` in norms and inputs, ``inner`` between matrices, ``stream`` between
    layers, ``scores`` of attention without a flash kernel, and those of the largest layer while it is recomputed."""

    outer: float
    inner: float
    stream: float
    scores: float
    largest: float
    halves: float  # what is kept besides the stream when every second matrix product is recomputed


def _lowers(linear: Linear) -> bool:
    return linear.name.rpartition(".")[2] in LOWERING


def _part(part: Part, mixer: bool, width: int, mode: str) -> tuple[float, float]:
    """Bytes a token in a part's norm and inputs, and between its matrices."""
    rising = [linear for linear in part.linears if not _lowers(linear)]
    out = sum(linear.active * linear.outer for linear in rising)
    lowered = sum(linear.active * linear.inner for linear in part.linears if _lowers(linear))
    routed = sum(linear.active * linear.inner for linear in rising if linear.active < linear.copies)
    if mode in ("fused", "fused-fp32"):
        each = 4 if mode == "fused-fp32" else 2
        return each * (2 * width + routed), each * (out + (lowered if mixer else 0))
    each = 4 if mode == "fp32" else 2
    activated = 0.0 if mixer else lowered  # activated gate, beside the product
    inner = each * (out + lowered + activated)
    if mode == "fp32":
        return 12 * width + 4 + 4 * routed, inner
    casts = 2 * sum(linear.active * linear.inner for linear in rising) if mode == "autocast" else 0
    return 8 * width + 4 + casts, inner


def _mode(work: Work, layout: Layout) -> str:
    if work.kernels == "fused":
        return "fused-fp32" if work.precision == "fp32" else "fused"
    if work.precision == "fp32":
        return "fp32"
    # FSDP2 computes in the bf16 weights that it gathers (not in one process); autocast is for whole fp32 weights.
    gathers = layout.sharding == "zero3" and layout.gpus > 1
    return "bf16" if work.precision == "bf16-weights" or gathers else "autocast"


@lru_cache(maxsize=1024)
def _kept(shape: Shape, mode: str) -> Kept:
    outer = inner = scores = largest = halves = 0.0
    each = 4 if mode in ("fp32", "fused-fp32") else 2
    for layer, count in _alike(shape):
        of_layer = 0.0
        for part in layer.parts:
            mixer = part is layer.mixer
            whole, between = _part(part, mixer, shape.width, mode)
            heads = part.attention_heads
            whole += 4 * heads[0] if heads else 0  # attention's normalisers
            outer, inner, of_layer = (
                outer + count * whole,
                inner + count * between,
                of_layer + whole + between,
            )
            scores += count * 5 * heads[0] if heads else 0
            products = sum(linear.active * linear.outer for linear in part.linears)
            attended = sum(linear.inner for linear in part.linears if _lowers(linear)) if mixer else 0
            halves += count * each * (products / 2 + attended)
        largest = max(largest, of_layer)
    stream = (4 if mode in ("fp32", "fused-fp32", "autocast") else 2) * shape.width * shape.depth
    return Kept(outer, inner, stream, scores, largest, halves)


def _alike(shape: Shape) -> list[tuple[Layer, int]]:
    found: dict[Layer, int] = {}
    for layer in shape.layers:
        found[layer] = found.get(layer, 0) + 1
    return list(found.items())


def tokens(layout: Layout, work: Work) -> float:
    """Positions of a micro batch on one GPU."""
    return layout.micro_batch * work.sequences * work.length / layout.context


def in_flight(layout: Layout, last: bool) -> float:
    """Micro batches' worth of a stage's layers that are kept at once, one forward and one backward in turn."""
    stages, pieces = layout.pipeline, layout.virtual
    if stages == 1:
        return 1.0
    if last:
        return min(layout.micro_batches, ((pieces - 1) * stages + 1) / pieces)
    return min(layout.micro_batches, stages + (stages - 1) / pieces)


def activations(shape: Shape, layout: Layout, work: Work, last: bool = False) -> float:
    """Bytes of activations on a GPU of the first or the ``last`` pipeline stage."""
    kept = _kept(shape, _mode(work, layout))
    narrow = layout.tensor if layout.sequence_parallel else 1
    scores = 0.0 if work.flash or layout.recompute != "none" else kept.scores * work.length / layout.tensor
    everything = kept.outer / narrow + kept.inner / layout.tensor + scores
    share = in_flight(layout, last) / layout.pipeline
    if layout.recompute == "full":
        per_token = share * kept.stream / narrow + kept.largest / layout.tensor
    elif layout.recompute == "selective" and work.kernels == "eager":
        per_token = (
            share * (kept.stream / narrow + kept.halves / layout.tensor) + kept.largest / layout.tensor
        )
    else:
        per_token = share * everything
    return tokens(layout, work) * per_token


def loss(shape: Shape, layout: Layout, work: Work, on_gpu: bool = True) -> float:
    """Bytes of logits and of the loss's gradients, on the last pipeline stage."""
    if work.kind == "reward":
        return 0.0
    positions = tokens(layout, work)
    if work.blocked_loss and layout.gpus == 1:
        block = min(positions, max(512, BLOCK_BYTES // (4 * shape.vocab) if on_gpu else 0))
        # The fp32 gradient of a trained head is gathered over the blocks beside the weight's own.
        gathered = 0.0 if work.adapted else 4.0 * shape.head_parameters
        return (
            block * BLOCK * shape.vocab + gathered + 2.0 * shape.head_parameters * (work.precision == "bf16")
        )
    if work.states == "automodel":  # logits are gathered over tensor ranks
        return positions * LOSS * shape.vocab
    return positions * PARALLEL_LOSS * shape.vocab / layout.tensor


def forward_bytes(shape: Shape, layout: Layout, work: Work) -> float:
    """Bytes a token that the layers of one GPU keep in a forward pass, recomputed or not."""
    kept = _kept(shape, _mode(work, layout))
    narrow = layout.tensor if layout.sequence_parallel else 1
    return (kept.outer / narrow + kept.inner / layout.tensor) / layout.pipeline
