"""From a recipe's settings to a layout and its work, and from what the search found back to ``SET="..."``.

The engine automodel computes with Hugging Face's own modules (``eager``) and AdamW over the weights it trains; nemo and
aligner with Megatron's, over a distributed optimiser.  Names are those of ``schema/training.py`` and ``launch``.
"""

from __future__ import annotations

from pipeline import schema
from pipeline.plan.training.layout import Layout, Work
from pipeline.schema.training import Optimisation

WITHOUT_REFERENCE = ("simpo", "orpo")
SHARDED = {"none": "ddp", "zero3": "fsdp2"}


def engine_of(settings: Optimisation) -> str:
    """The search's name of the engine that a section is trained by."""
    return "automodel" if getattr(settings, "engine", "automodel") == "automodel" else "nemo"


def read(section: str, settings: Optimisation, length: int, gpus: int) -> tuple[Layout, Work]:
    """Layout and work of a section (pretrain, train, reward, align) on so many GPUs, with sequences of ``length`` tokens.

    The engines nemo and aligner have a number of GPUs of their own, which counts instead.
    """
    kind = {"pretrain": "pretrain", "train": "sft", "reward": "reward"}.get(section, "")
    if isinstance(settings, schema.Align):
        kind = "rpo" if settings.loss.startswith("rpo") else settings.loss
    peft: str = getattr(settings, "peft", "none")
    lora: schema.Lora = getattr(settings, "lora", schema.Lora())
    work = Work(
        kind,
        length=length,
        precision="bf16" if settings.precision == "auto" else settings.precision,
        states="automodel",
        kernels="eager",
        peft=peft,
        rank=lora.rank,
        targets=tuple(lora.targets),
        reference=_reference(settings, peft),
        packing=settings.packing,
        # Next-token training in one process makes its logits in blocks (engines/automodel/linear_loss.py).
        blocked_loss=kind in ("pretrain", "sft") and gpus == 1,
    )
    if engine_of(settings) == "nemo":
        return _nemo(settings, work)
    shape = settings.parallel
    layout = Layout(
        gpus=gpus,
        tensor=shape.tensor,
        context=shape.context,
        sequence_parallel=shape.sequence,
        sharding={ours: name for name, ours in SHARDED.items()}[shape.strategy],
        micro_batch=settings.micro_batch_size,
        global_batch=settings.global_batch_size,
        recompute=shape.recompute,
    )
    return layout, work


def _reference(settings: Optimisation, peft: str) -> str:
    if not isinstance(settings, schema.Align):
        return "none"
    if settings.loss not in WITHOUT_REFERENCE and settings.reference == "live":
        return "live"
    if settings.exact_kl and peft == "none":
        return "kept"
    return "none" if settings.loss in WITHOUT_REFERENCE else "precomputed"


def _nemo(settings: Optimisation, work: Work) -> tuple[Layout, Work]:
    nemo: schema.training.Nemo = settings.nemo  # type: ignore[attr-defined]
    layout = Layout(
        gpus=nemo.nodes * nemo.gpus,
        tensor=nemo.tensor,
        pipeline=nemo.pipeline,
        context=nemo.context,
        sequence_parallel=nemo.sequence_parallel,
        sharding="zero1",
        micro_batch=settings.micro_batch_size,
        global_batch=settings.global_batch_size,
    )
    reference = work.reference
    if isinstance(settings, schema.Align):  # NeMo-Aligner keeps a copy, and asks it in every step
        reference = "live"
    return layout, Work(
        work.kind,
        length=work.length,
        precision=work.precision,
        peft=work.peft,
        rank=work.rank,
        targets=work.targets,
        reference=reference,
        packing=work.packing,
    )


def paste(
    section: str,
    was: tuple[Layout, Work],
    now: tuple[Layout, Work],
    engine: str,
    node_gpus: int = 8,
    gpus: bool = True,
) -> str:
    """What to put into ``SET="..."`` to get from one layout and work to another; empty where nothing differs.

    GPUs come as machines of ``node_gpus``; without ``gpus`` they are left out, for whoever names them otherwise.
    """
    (old, old_work), (new, new_work) = was, now
    said: list[str] = []

    def say(name: str, before: object, after: object) -> None:
        if before != after:
            said.append(f"{name}={str(after).lower() if isinstance(after, bool) else after}")

    say(f"{section}.peft", old_work.peft, new_work.peft)
    say(f"{section}.precision", old_work.precision, new_work.precision)
    say(f"{section}.micro_batch_size", old.micro_batch, new.micro_batch)
    nodes, each = -(-new.gpus // node_gpus), min(new.gpus, node_gpus)
    if engine == "nemo":
        if gpus and old.gpus != new.gpus:
            said += [f"{section}.nemo.nodes={nodes}", f"{section}.nemo.gpus={each}"]
        for name in ("tensor", "pipeline", "context", "sequence_parallel"):
            say(f"{section}.nemo.{name}", getattr(old, name), getattr(new, name))
        return " ".join(said)
    parallel = f"{section}.parallel"
    say(f"{parallel}.strategy", SHARDED.get(old.sharding), SHARDED.get(new.sharding))
    say(f"{parallel}.tensor", old.tensor, new.tensor)
    say(f"{parallel}.context", old.context, new.context)
    say(f"{parallel}.sequence", old.sequence_parallel, new.sequence_parallel)
    say(f"{parallel}.recompute", old.recompute, new.recompute)
    if gpus and old.gpus != new.gpus:
        said += [f"launch.nodes={nodes}", f"launch.gpus={each}"]
    return " ".join(said)
