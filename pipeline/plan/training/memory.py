"""Memory of a training step on its fullest GPU, item by item.

    need = memory.need(shape, layout, work)
    print(need.total, [str(item) for item in need.items])

States are those of :mod:`pipeline.plan.training.states`, activations and the loss those of
:mod:`pipeline.plan.training.activations`; of a pipeline, the first and the last stage are looked at, and the fuller counts.
Buffers: FSDP holds two layers and the embeddings gathered (one computed with, one on its way) and a layer's gradients
before they are scattered; PyTorch's DDP has buckets as large as the gradients; autocast keeps bf16 copies of fp32
weights.  What comes and goes fragments the allocator's memory, what stays does not: a twentieth of the former is
added.  The CUDA context with NCCL's buffers is 1.5 GB.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.quantity import Quantity, given, total
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training import activations
from pipeline.plan.training.layout import Layout, Work
from pipeline.plan.training.states import adapters, counts, held, per_parameter, states

CONTEXT_BYTES = 1.5e9
FRAGMENTATION = 0.05
KORTHIKANTI = "Korthikanti et al. 2022, equations 1 to 4; pipeline/plan/training/activations.py"
ZERO = "Rajbhandari et al. 2020, section 3; pipeline/plan/training/states.py"


@dataclass(frozen=True)
class Need:
    """Bytes on the fullest GPU."""

    items: tuple[Quantity, ...]
    stage: str

    @property
    def total(self) -> Quantity:
        """All items, added up."""
        return total("memory per GPU", self.items)

    @property
    def bytes(self) -> float:
        """The sum as a plain number."""
        return sum(item.value for item in self.items)

    def item(self, name: str) -> Quantity:
        """The item of a name."""
        return next(item for item in self.items if item.name == name)


def need(shape: Shape, layout: Layout, work: Work, on_gpu: bool = True) -> Need:
    """What a step holds on its fullest GPU; raises :class:`pipeline.errors.UserError` for an impossible layout."""
    layout.check(shape, work)
    last, found = fullest(shape, layout, work, on_gpu)
    explained = _explained(shape, layout, work, last)
    items = tuple(Quantity(name, value, "B", *explained[name]) for name, value in found.items() if value)
    return Need(
        items,
        "last pipeline stage" if last else "first pipeline stage" if layout.pipeline > 1 else "every GPU",
    )


def fullest(shape: Shape, layout: Layout, work: Work, on_gpu: bool = True) -> tuple[bool, dict[str, float]]:
    """Whether the last pipeline stage is the fuller one, and the bytes of each item there."""
    stages = (False, True) if layout.pipeline > 1 else (True,)
    each = [(last, itemised(shape, layout, work, last, on_gpu)) for last in stages]
    return max(each, key=lambda stage: sum(stage[1].values()))


def itemised(shape: Shape, layout: Layout, work: Work, last: bool, on_gpu: bool = True) -> dict[str, float]:
    """Bytes of each item on a GPU of the first or the ``last`` stage; the layout is not checked."""
    held_states = states(shape, layout, work, last)
    ends = last or layout.pipeline == 1
    lost = activations.loss(shape, layout, work, on_gpu) if ends else 0.0
    kept, gathered = activations.activations(shape, layout, work, last), buffers(shape, layout, work, last)
    return {
        "weights": held_states.weights,
        "gradients": held_states.gradients,
        "master weights": held_states.master,
        "optimiser states": held_states.optimiser,
        "adapters": held_states.adapters,
        "reference policy": held_states.reference,
        "activations": kept,
        "logits and loss": lost,
        "buffers": gathered,
        "fragmentation": FRAGMENTATION * (kept + lost + gathered),
        "CUDA context": CONTEXT_BYTES if on_gpu else 0.0,
    }


def buffers(shape: Shape, layout: Layout, work: Work, last: bool = False) -> float:
    """Bytes of gathered layers (FSDP), buckets (DDP) and bf16 copies (autocast) on a GPU."""
    computed = 4.0 if work.precision == "fp32" else 2.0
    if layout.sharding == "zero3" and layout.gpus > 1:
        all_of = counts(shape, work.kind == "reward")
        spread = layout.expert if layout.expert > 1 else layout.tensor
        layer = (all_of.layers / layout.tensor + all_of.experts / spread) / shape.depth
        embeddings = held(shape, layout, work, last).embeddings
        scattered = 0.0 if work.adapted else layer
        return computed * (2 * layer + embeddings + scattered)
    if work.states != "automodel":
        return 0.0
    own = held(shape, layout, work, last)
    copies = 2.0 * own.total if work.precision == "bf16" and work.kernels == "eager" else 0.0
    trained = adapters(shape, layout, work) if work.adapted else own.total
    return copies + (trained * per_parameter(work).gradient if layout.data > 1 else 0.0)


def _explained(
    shape: Shape, layout: Layout, work: Work, last: bool
) -> dict[str, tuple[str, tuple[Quantity, ...], str]]:
    """Formula, inputs and source of each item."""
    own, each = held(shape, layout, work, last), per_parameter(work)
    parameters = given(
        "parameters on the GPU, unsharded", own.total, "parameter", f"{shape.name}, {layout.words()}"
    )
    ranks = given("ranks that states are sharded over", layout.ranks, source="data x context parallel")
    stage = ("none", "zero1", "zero2", "zero3").index(layout.sharding)
    trained = (
        given(
            "adapter parameters on the GPU", adapters(shape, layout, work), "parameter", f"rank {work.rank}"
        )
        if work.adapted
        else parameters
    )

    def state(bytes_each: float, of: Quantity, from_stage: int) -> tuple[str, tuple[Quantity, ...], str]:
        cut = stage >= from_stage and layout.ranks > 1
        formula = f"{bytes_each:g} B x parameters" + (" / ranks" if cut else "")
        return formula, (of, ranks) if cut else (of,), ZERO

    positions = given("positions of a micro batch", activations.tokens(layout, work), "token", layout.words())
    kept = given(
        "bytes kept a position, all layers of a GPU",
        activations.activations(shape, layout, work, last) / activations.tokens(layout, work),
        "B",
        "pipeline/plan/training/activations.py",
    )
    flight = given(
        "micro batches in flight", activations.in_flight(layout, last), source="Narayanan et al. 2021"
    )
    weight = "0.55 B (NF4) in layers" if work.peft == "qlora" else f"{each.weight:g} B"
    frozen = state(each.weight, parameters, 3)
    logits = (
        "one block of positions x vocabulary x 8 B, and the head's gradient"
        if work.blocked_loss and layout.gpus == 1
        else f"positions x vocabulary x {activations.LOSS if work.states == 'automodel' else activations.PARALLEL_LOSS} B"
    )
    return {
        "weights": (frozen[0].replace(f"{each.weight:g} B", weight), frozen[1], frozen[2]),
        "gradients": state(each.gradient, trained, 2),
        "master weights": state(each.master, trained, 1),
        "optimiser states": state(each.moments, trained, 1),
        "adapters": state(each.weight, trained, 3),
        "reference policy": ("a frozen copy of the weights", (), "")
        if work.reference in ("kept", "live")
        else ("none held", (), ""),
        "activations": (
            f"positions x bytes kept (recompute {layout.recompute}, {work.kernels} kernels, micro batches in flight)",
            (positions, kept, flight),
            KORTHIKANTI
            if work.kernels == "fused"
            else "Hugging Face's modules, tensor by tensor; pipeline/plan/training/activations.py",
        ),
        "logits and loss": (
            logits,
            (positions, given("vocabulary", shape.vocab, source=shape.name)),
            "pipeline/plan/training/activations.py",
        ),
        "buffers": (
            "gathered layers (FSDP), buckets (DDP), bf16 copies (autocast)",
            (),
            "pipeline/plan/training/memory.py",
        ),
        "fragmentation": (
            f"{FRAGMENTATION:g} x (activations + logits and loss + buffers)",
            (),
            "an assumption; pipeline/plan/training/memory.py",
        ),
        "CUDA context": ("a constant", (), "an assumption; pipeline/plan/training/memory.py"),
    }
