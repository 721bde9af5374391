"""What each engine can be asked for, which bounds the search for a layout that fits.

``automodel``   this project's own: FSDP2 or DDP, tensor, context, recomputation, adapters, bf16 weights (``schema/training.py``).
``nemo``        nemo-toolkit: tensor, pipeline and context parallelism over a distributed optimiser, LoRA.
``any``         all that the model knows of: virtual stages, ZeRO's stages, recomputation besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.errors import UserError
from pipeline.plan.training.layout import PREFERENCE, Layout, Work


@dataclass(frozen=True)
class Engine:
    """Values of each axis that may be tried, besides those that are set already."""

    shardings: tuple[str, ...]
    pipelines: bool
    virtual: bool
    recomputes: tuple[str, ...]
    pefts: tuple[str, ...]
    half_weights: bool
    sharded_only: bool  # tensor and context parallelism need FSDP


ENGINES = {
    "automodel": Engine(
        ("zero3",), False, False, ("none", "selective", "full"), ("lora", "qlora"), True, True
    ),
    "nemo": Engine(("zero1",), True, False, (), ("lora",), False, False),
    "any": Engine(("zero1", "zero3"), True, True, ("none", "full"), ("lora",), False, False),
}


def engine(name: str) -> Engine:
    """The engine of a name; raises :class:`UserError` for another."""
    if name not in ENGINES:
        raise UserError(f"engine = {name!r}: choose one of {', '.join(ENGINES)}")
    return ENGINES[name]


def works(work: Work, name: str) -> Iterator[Work]:
    """The work itself, and what it may be changed to so that it takes less memory, the least change first."""
    found = engine(name)
    yield work
    halved = (
        replace(work, precision="bf16-weights") if found.half_weights and work.precision == "bf16" else None
    )
    if halved is not None:
        yield halved
    if work.kind == "pretrain" or work.adapted or (name == "nemo" and work.kind != "sft"):
        return
    for peft in found.pefts:
        if peft == "qlora" and (work.kind == "reward" or work.precision == "fp32"):
            continue
        adapted = replace(work, peft=peft)
        if work.kind in PREFERENCE and work.reference == "kept":
            adapted = replace(adapted, reference="none")  # the policy with its adapter off measures the KL
        yield adapted
        if halved is not None and peft != "qlora":
            yield replace(adapted, precision="bf16-weights")


def layouts(start: Layout, work: Work, depth: int, node: int, gpus: int, name: str) -> Iterator[Layout]:
    """Layouts of so many GPUs with the same global batch; most of them are not valid for a given model."""
    found = engine(name)
    # AutoModel trains reward models data-parallel only, and a 4-bit matrix cannot be cut by columns.
    single = name == "automodel" and (work.kind == "reward" or work.peft == "qlora")
    tensors = _sizes(1 if single else min(node, gpus), start.tensor)
    pipelines = _sizes(min(depth, gpus), start.pipeline) if found.pipelines else (start.pipeline,)
    packed = name == "automodel" and work.packing  # goes with neither context nor sequence parallelism
    whole = packed or single or (name == "automodel" and work.kind in PREFERENCE)  # losses of whole answers
    contexts = _sizes(1 if whole else min(8, gpus), start.context)
    shardings = dict.fromkeys((start.sharding, *found.shardings))
    recomputes = dict.fromkeys((start.recompute, *found.recomputes))
    micros = dict.fromkeys((start.micro_batch, *(size for size in (4, 2, 1) if size < start.micro_batch)))
    for tensor in tensors:
        for pipeline in pipelines:
            if gpus % (tensor * pipeline):
                continue
            for context in contexts:
                ranks = gpus // (tensor * pipeline * context)
                if gpus % (tensor * pipeline * context) or start.global_batch % ranks:
                    continue
                for sharding in shardings:
                    if (
                        ranks * context == 1
                        and sharding != start.sharding
                        and not (found.sharded_only and tensor > 1)
                    ):
                        continue  # nothing to shard over
                    if found.sharded_only and sharding != "zero3" and tensor * context > 1:
                        continue
                    if sharding == "zero3" and pipeline > 1 and start.sharding != "zero3":
                        continue
                    for virtual in _pieces(start, pipeline, depth) if found.virtual else (1,):
                        for micro in micros:
                            for recompute in recomputes:
                                yield replace(
                                    start,
                                    gpus=gpus,
                                    tensor=tensor,
                                    pipeline=pipeline,
                                    virtual=virtual if pipeline > 1 else 1,
                                    context=context,
                                    sequence_parallel=tensor > 1
                                    and not (work.packing and name == "automodel"),
                                    sharding=sharding,
                                    micro_batch=micro,
                                    recompute=recompute,
                                )


def _sizes(most: int, also: int) -> tuple[int, ...]:
    """Powers of two up to ``most``, and the size that is set."""
    return tuple(sorted({also, *(2**power for power in range(most.bit_length()) if 2**power <= most)}))


def _pieces(start: Layout, pipeline: int, depth: int) -> tuple[int, ...]:
    """One piece a stage, the pieces that are set, and as many as there are layers for, evenly."""
    if pipeline == 1:
        return (1,)
    even = [size for size in range(2, 11) if depth % (pipeline * size) == 0]
    return tuple(dict.fromkeys((start.virtual, 1, *even[-1:])))
