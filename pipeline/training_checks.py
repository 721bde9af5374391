"""Rules between the settings of training that no single type or range can state.

Each rule yields the setting to mend and what is wrong with it, as in :mod:`pipeline.checks`.  What would merely change
nothing is in :mod:`pipeline.inert`.
"""

from __future__ import annotations

from collections.abc import Iterator

from pipeline import lora_targets, schema
from pipeline.schema import Optimisation
from pipeline.schema.training import LOSS_SETTINGS

# Values that the engines nemo and aligner can do something with.
AUTOMODEL_ONLY: dict[str, tuple[object, ...]] = {
    "answers": ("last",),
    "too_long": ("drop",),
    "peft": ("none", "lora"),
    "precision": ("auto", "bf16", "fp32"),
    "schedule": ("cosine",),
    "best_every": (0,),
    "loss": ("dpo",),
    "label_smoothing": (0,),
    "average": (None, False),
    "attributes": ([],),
}


def faults(recipe: schema.Recipe) -> Iterator[tuple[str, str]]:
    """Broken rules of pre-training, fine-tuning, the reward model and alignment."""
    for section in ("pretrain", "train", "reward", "align"):
        settings = getattr(recipe, section)
        if settings.global_batch_size % settings.micro_batch_size:
            yield (
                f"{section}.micro_batch_size",
                f"{settings.micro_batch_size} does not divide {section}.global_batch_size = "
                f"{settings.global_batch_size}",
            )
        if settings.warmup_steps >= settings.max_steps:
            yield (
                f"{section}.warmup_steps",
                f"{settings.warmup_steps} leaves nothing of {section}.max_steps = {settings.max_steps}",
            )
        if section != "reward":  # which only automodel trains
            yield from _engine(section, settings)
        yield from _layout(section, settings)
        if recipe.model.base is None:  # of a base, its own configuration says (pipeline/runner/base.py)
            yield from target_faults(recipe, section, recipe.model.layers, recipe.model.tie_embeddings)


def _engine(
    section: str, settings: schema.Pretrain | schema.Train | schema.Align
) -> Iterator[tuple[str, str]]:
    """What an engine other than automodel, which cuts a model over GPUs, asks of the sizes."""
    if settings.engine == "automodel":
        return
    nemo = settings.nemo
    gpus, model = nemo.nodes * nemo.gpus, nemo.tensor * nemo.pipeline * nemo.context
    if gpus % model:
        yield (
            f"{section}.nemo.gpus",
            f"{nemo.nodes} x {nemo.gpus} GPUs cannot be cut into groups of {model} (tensor {nemo.tensor} x "
            f"pipeline {nemo.pipeline} x context {nemo.context})",
        )
        return
    replicas = gpus // model
    if settings.global_batch_size % (settings.micro_batch_size * replicas):
        yield (
            f"{section}.global_batch_size",
            f"{settings.global_batch_size} is no multiple of {section}.micro_batch_size = "
            f"{settings.micro_batch_size} times {replicas} replicas ({gpus} GPUs in groups of {model})",
        )
    if nemo.sequence_parallel and nemo.tensor == 1:
        yield f"{section}.nemo.sequence_parallel", f"needs {section}.nemo.tensor above 1"
    for name, kept in AUTOMODEL_ONLY.items():
        if getattr(settings, name, kept[0]) not in kept:
            yield (
                f"{section}.{name}",
                f"{getattr(settings, name)!r} is for the engine automodel; {settings.engine} goes with "
                f"{' or '.join(repr(value) for value in kept)}",
            )


def _layout(section: str, settings: Optimisation) -> Iterator[tuple[str, str]]:
    """What cannot go together in how the work is spread, and in the preference losses."""
    shape = settings.parallel
    if shape.strategy == "ddp" and (shape.tensor > 1 or shape.context > 1):
        name = "tensor" if shape.tensor > 1 else "context"
        yield f"{section}.parallel.{name}", f"needs {section}.parallel.strategy=fsdp2: ddp keeps layers whole"
    if shape.sequence and shape.tensor == 1:
        yield f"{section}.parallel.sequence", f"needs {section}.parallel.tensor above 1"
    if shape.sequence and settings.packing:
        yield f"{section}.packing", f"does not go with {section}.parallel.sequence"
    if shape.context > 1 and settings.packing:
        yield f"{section}.packing", f"does not go with {section}.parallel.context above 1"
    if shape.context > 1 and isinstance(settings, schema.Align):
        yield (
            f"{section}.parallel.context",
            "is for next-token training: preference losses need whole answers",
        )
    if getattr(settings, "peft", "none") == "qlora" and settings.precision == "fp32":
        yield f"{section}.precision", "fp32 does not go with qlora, whose weights are multiplied in bf16"
    if isinstance(settings, schema.Align):
        yield from _foreign(settings)
    if isinstance(settings, schema.Align) and settings.loss == "orpo" and settings.sft_weight:
        yield "align.sft_weight", "orpo holds the loss on the chosen answers already; set it to 0"


def _foreign(align: schema.Align) -> Iterator[tuple[str, str]]:
    """Settings of another preference loss, which would do nothing."""
    plain = schema.Align()
    for name in sorted({name for names in LOSS_SETTINGS.values() for name in names}):
        owners = [loss for loss, names in LOSS_SETTINGS.items() if name in names]
        if align.loss not in owners and getattr(align, name) != getattr(plain, name):
            yield f"align.{name}", f"is a setting of {', '.join(owners)}; align.loss is {align.loss}"


def target_faults(recipe: schema.Recipe, section: str, depth: int, tied: bool) -> Iterator[tuple[str, str]]:
    """Targets of adapters that a section trains, held to the Llama that it trains them on."""
    settings = getattr(recipe, section)
    if getattr(settings, "peft", "none") == "none" or section not in recipe.stages:
        return
    for fault in lora_targets.faults(settings.lora.targets, depth, tied, head=section != "reward"):
        yield f"{section}.lora.targets", fault
