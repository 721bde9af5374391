"""Seconds of a training step, from what is computed and moved, and from rates fitted on published throughput.

A micro batch on one GPU takes, in seconds:

    products    FLOP of matrices / (peak x share of the peak that products reach in this precision)
    mixing      FLOP of attention / (bf16 peak x share), whatever the precision of the matrices
    traffic     bytes that the forward pass keeps x ``traffic`` / memory bandwidth: norms, activations, adapters' additions
    experts     tokens sent to experts and back, forward and backward / NVLink x ``experts``, of each framework its own
    tensor      2 all-reduces a layer forward, 2 backward / link bandwidth x the share not hidden by computing
    context     keys and values of the other ranks, forward once, backward twice / link bandwidth x the share not hidden
    sharding    FSDP's gathered weights and scattered gradients / link bandwidth x the share not hidden

and a step ``micro batches x that x (1 + (PP - 1) / (VP x micro batches))``, the pipeline's bubble by Narayanan et al. 2021
(section 2.2), then the gradients' reduction where they are not sharded, and the optimiser at memory bandwidth.  What is fitted
is in :class:`Constants`, by :mod:`pipeline.plan.training.fit`; every prediction carries the error on rows that the fit
did not see.  Collectives: ring volumes (Thakur et al. 2005); tensor parallelism: Shoeybi et al. 2019, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.errors import UserError
from pipeline.plan.hardware import Gpu
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.activations import forward_bytes, tokens
from pipeline.plan.training.efficiency import Constants, Efficiency, load
from pipeline.plan.training.flops import computed, model_flops
from pipeline.plan.training.layout import Layout, Work
from pipeline.plan.training.layout import experts as experts_of
from pipeline.plan.training.states import NF4, adapters, held, per_parameter

SOURCE = "pipeline/plan/training/speed.py"
PRECISIONS = {"bf16": "bf16", "bf16-weights": "bf16", "fp8": "fp8", "fp32": "fp32"}
PARTS = (
    "products",
    "mixing",
    "traffic",
    "experts",
    "tensor",
    "context",
    "sharding",
    "bubble",
    "reduction",
    "optimiser",
)


def domain(gpu: Gpu) -> int:
    """GPUs that NVLink joins, or that share a machine: within it, no network is needed."""
    return max(gpu.gpus_per_node, gpu.nvlink_gpus)


def link(gpu: Gpu, ranks: int, stride: int) -> tuple[float, float]:
    """Bytes/s of a ring over ``ranks`` GPUs, ``stride`` apart: inside a machine, and between machines (0: it spans one).

    Every GPU has a network card of its own; of a group that spans machines, all members of a machine use theirs.
    """
    inside = gpu.link(min(ranks * stride, domain(gpu)))
    if ranks * stride <= domain(gpu):
        return inside, 0.0
    return inside, gpu.network_gb_s * 1e9 * min(ranks, max(1, domain(gpu) // stride))


def gather_seconds(gpu: Gpu, size: float, ranks: int, stride: int) -> float:
    """Seconds in which every rank has received ``size`` bytes of which each held one part (or reduced and scattered them)."""
    if ranks == 1 or not size:
        return 0.0
    inside, between = link(gpu, ranks, stride)
    seconds = size * (ranks - 1) / ranks / inside
    if between:
        machines = ranks / min(ranks, max(1, domain(gpu) // stride))
        seconds = max(seconds, size * (machines - 1) / machines / between)
    return seconds


def step_parts(shape: Shape, layout: Layout, work: Work, gpu: Gpu, constants: Constants) -> dict[str, float]:
    """Seconds of each part of a step; the layout is not checked."""
    precision = PRECISIONS[work.precision]
    split, count = layout.tensor * layout.pipeline, layout.micro_batches
    positions = tokens(layout, work)
    flop = computed(shape, layout, work)
    rate = gpu.flops(precision) * (constants.fp8 if precision == "fp8" else constants.bf16)
    linear = (flop.linear + flop.head) / rate * (1 + constants.adapters * work.adapted)
    products = positions / split * linear
    mixing = (
        positions
        / split
        * flop.mixing
        / (gpu.flops("fp32" if precision == "fp32" else "bf16") * constants.bf16)
    )
    again = 1 + (layout.recompute == "full") / 3
    traffic = positions * forward_bytes(shape, layout, work) * again * constants.traffic / (gpu.bandwidth)
    if work.peft == "qlora":  # bf16 copies of NF4 weights, made for each pass: read, written, read
        traffic += (2 + again) * held(shape, layout, work, last=False).layers * (NF4 + 4) / (gpu.bandwidth)
    per_layer = positions * shape.depth / layout.pipeline
    moved = 2.0 * per_layer * shape.width * (8 + 4 * (layout.recompute == "full"))
    tensor = constants.tensor * gather_seconds(gpu, moved, layout.tensor, 1)
    keys = 2.0 * per_layer * 2 * shape.kv_heads * shape.head_size / layout.tensor * 3 * layout.context
    context = constants.context * gather_seconds(gpu, keys, layout.context, layout.tensor)
    # Tokens to their experts and back, forward and backward; the matrices of TP ranks share them.
    factor = constants.experts_automodel if work.states == "automodel" else constants.experts
    experts = factor * positions / split * 4 * routed_bytes(shape) / gpu.link(min(8, domain(gpu)))
    computing = products + mixing + traffic + experts
    sharding, reduction = _states_moved(shape, layout, work, gpu)
    hidden = max(constants.sharding * sharding, sharding - computing)
    micro = computing + tensor + context + hidden
    own = held(shape, layout, work, last=False)
    trained = adapters(shape, layout, work) if work.adapted else own.total
    each = per_parameter(work)
    touched = 2 * (each.gradient + each.master + each.moments) + each.weight
    update = trained * touched / (1 if layout.sharding == "none" else layout.ranks)
    return {
        "products": count * products,
        "mixing": count * mixing,
        "traffic": count * traffic,
        "experts": count * experts,
        "tensor": count * tensor,
        "context": count * context,
        "sharding": count * hidden,
        "bubble": micro * (layout.pipeline - 1) / layout.virtual,
        "reduction": max(constants.sharding * reduction, reduction - micro),  # beside the last micro batch
        "optimiser": update / (gpu.bandwidth),
    }


@lru_cache(maxsize=256)
def routed_bytes(shape: Shape) -> float:
    """Bytes that a token sends to its experts, in bf16, all layers added up."""
    return 2.0 * sum(
        linear.active * linear.inner
        for layer in shape.layers
        for part in layer.parts
        for linear in part.linears
        if linear.active < linear.copies and linear.inner == shape.width
    )


def _states_moved(shape: Shape, layout: Layout, work: Work, gpu: Gpu) -> tuple[float, float]:
    """Seconds of FSDP's collectives in a micro batch, and of the gradients' (and weights') in a step."""
    own, each = held(shape, layout, work, last=False).total, per_parameter(work)
    trained = adapters(shape, layout, work) if work.adapted else own
    sent = 4.0 if work.precision == "fp32" else 2.0
    stride = layout.tensor
    if layout.sharding == "zero3":
        moved = 2 * sent * own + min(each.gradient, 4.0) * trained
        return gather_seconds(gpu, moved, layout.ranks, stride), 0.0
    moved = (sent + each.gradient) * trained  # all-reduce, or reduce-scatter and all-gather of weights
    return 0.0, gather_seconds(gpu, moved, layout.ranks, stride)


@dataclass(frozen=True)
class Prediction:
    """Speed of a step.

    ``error`` and ``worst``: mean and largest relative error on held-out rows of what it was predicted with; None where the step
    was measured.  ``limits``: what sets it apart from every published row, in words.
    """

    step: Quantity
    tokens_per_gpu: Quantity
    flops_per_gpu: Quantity
    utilisation: Quantity
    error: Quantity | None
    worst: Quantity | None
    limits: tuple[str, ...]
    gpus: int

    def run(self, tokens: float) -> tuple[Quantity, Quantity]:
        """Seconds and GPU-hours of a run over so many tokens; raises :class:`UserError` for none."""
        if not tokens > 0 or tokens == float("inf"):
            raise UserError(f"a run over {tokens} tokens: give a number above 0")
        given_tokens = given("tokens", tokens, "token")
        seconds = tokens / (self.tokens_per_gpu.value * self.gpus)
        gpus = given("GPUs", self.gpus)
        time = Quantity(
            "time",
            seconds,
            "s",
            "tokens / (tokens/s per GPU x GPUs)",
            (given_tokens, self.tokens_per_gpu, gpus),
            SOURCE,
        )
        hours = Quantity("GPU-hours", seconds * self.gpus / 3600, "h", "time x GPUs", (time, gpus), SOURCE)
        return time, hours


def predict(
    shape: Shape,
    layout: Layout,
    work: Work,
    gpu: Gpu,
    efficiency: Efficiency | None = None,
    measured_step: float | None = None,
) -> Prediction:
    """Speed of a step on GPUs of a kind.

    ``measured_step``, seconds of a real step of this very layout, takes the place of the efficiency model.  Raises
    :class:`UserError` for an impossible layout, and a precision that the GPU does not have.
    """
    layout.check(shape, work)
    if measured_step is not None and not 0 < measured_step < float("inf"):
        raise UserError(f"a measured step of {measured_step} s: give a number above 0")
    found = efficiency or load()
    if measured_step is None:
        from pipeline.plan.training.derivations import derivation  # which looks into this module

        parts = step_parts(shape, layout, work, gpu, found.constants)
        lines = tuple(
            Quantity(
                name, parts[name], "s", *derivation(name, shape, layout, work, gpu, found.constants), SOURCE
            )
            for name in PARTS
            if parts[name]
        )
        step = Quantity("step time", sum(parts.values()), "s", "sum", lines, SOURCE)
    else:
        step = given("step time", measured_step, "s", "measured")
    positions = layout.global_batch * work.sequences * work.length
    batch = given("tokens of a step", positions * work.fill, "token", layout.words())
    gpus = given("GPUs", layout.gpus)
    rate = Quantity(
        "throughput per GPU",
        batch.value / (step.value * layout.gpus),
        "token/s",
        "tokens of a step / (step time x GPUs)",
        (batch, step, gpus),
    )
    flop = model_flops(shape, work)
    flops = Quantity(
        "model FLOP/s per GPU",
        flop.value * positions / (step.value * layout.gpus),
        "FLOP/s",
        "FLOP per token x positions of a step / (step time x GPUs)",
        (flop, step, gpus),
    )
    best = gpu.quantity(PRECISIONS[work.precision])
    share = Quantity("model FLOP utilisation", flops.value / best.value, "", "FLOP/s / peak", (flops, best))
    error, worst = found.errors(shape) if measured_step is None else (None, None)
    return Prediction(
        step, rate, flops, share, error, worst, _limits(shape, work, gpu, found, measured_step), layout.gpus
    )


def _limits(
    shape: Shape, work: Work, gpu: Gpu, efficiency: Efficiency, measured: float | None
) -> tuple[str, ...]:
    """What sets this prediction apart from every published row, in words."""
    if measured is not None:
        return ()
    known: dict[str, Any] = efficiency.known
    found = []
    if gpu.name not in known["gpus"]:
        found.append(
            f"no published row is of {gpu.name}; its rates are those of {', '.join(known['gpus'])}, scaled to its peak"
        )
    if shape.parameters < known["smallest"] / 2:
        found.append(
            f"the smallest model of a published row has {known['smallest'] / 1e9:.1f} billion parameters; small ones wait "
            "for kernels to be launched, and are slower than this"
        )
    if work.precision == "fp32":
        found.append("no published row is in fp32")
    if work.kernels == "eager":
        found.append("published rows are of fused kernels; Hugging Face's own modules are slower")
    if work.sequences > 1:
        found.append("no published row is of preference pairs")
    if experts_of(shape):
        found.append("mixtures of experts are predicted with the error of their own rows, which is larger")
    if any(part.scan_flops(work.length, True) for layer in shape.layers for part in layer.parts):
        found.append("no published row is of a state space")
    return tuple(found)
