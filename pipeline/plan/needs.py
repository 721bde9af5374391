"""What the training steps of a recipe need where they would run: memory, time, GPU-hours and money, and whether it fits.

    for each in needs(loaded, ["train"], places(loaded.settings)):
        print(each.stage, each.memory, each.verdict.word, each.time, each.money)

Memory is :mod:`pipeline.plan.training.memory`'s.  Time is what ``lifecycle plan --calibrate`` measured for this very step on
this machine, or else what the model of throughput says of the kind of GPU, which carries its held-out error; of a machine without GPUs
nothing is said before it has been measured.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.graph import TRAINING
from pipeline.plan import money
from pipeline.plan.calibrate import Measured
from pipeline.plan.data import looks, sequence_tokens
from pipeline.plan.hardware import GIB, Gpu
from pipeline.plan.hardware import gpu as gpu_of
from pipeline.plan.place import Machine
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.quantity import total as total_of
from pipeline.plan.shapes import of_recipe
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training import eager, memory, search, speed
from pipeline.plan.training.layout import Layout, Work
from pipeline.plan.training.settings import engine_of, paste, read
from pipeline.plan.training.verdict import Verdict, against
from pipeline.recipe import LoadedRecipe
from pipeline.schema.training import Optimisation

# Of a process on a processor: the interpreter, torch and AutoModel (0.67 GB once they are loaded), examples, allocators.
# llama-tiny's three steps had 1.1 to 1.5 GB at their peak, of which 0.2 to 0.8 were tensors (2026-11-22).
LIBRARIES = 1.0e9
SHOWN = 4


@dataclass(frozen=True)
class Needs:
    """Of one training step: where, how, and what it takes.  What is not known is None."""

    stage: str
    place: Machine
    shape: Shape
    layout: Layout
    work: Work
    fault: str | None
    memory: Quantity | None = None
    verdict: Verdict | None = None
    prediction: speed.Prediction | None = None
    tokens: Quantity | None = None
    time: Quantity | None = None
    gpu_hours: Quantity | None = None
    money: Quantity | None = None
    energy: Quantity | None = None
    measured: bool = False
    alternatives: tuple[Alternative, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether it can be run."""
        return self.fault is None and (self.verdict is None or self.verdict.feasible)

    def quantities(self) -> list[Quantity]:
        """Every number of it, for ``--explain`` and ``--json``."""
        found = [self.memory, self.verdict.share if self.verdict else None]
        if self.prediction is not None and not self.measured:
            each = self.prediction
            found += [
                each.step,
                each.tokens_per_gpu,
                each.flops_per_gpu,
                each.utilisation,
                each.error,
                each.worst,
            ]
        found += [self.time, self.gpu_hours, self.money, self.energy]
        return [each for each in found if each is not None]

    def record(self) -> dict[str, Any]:
        """For the step's manifest: what was planned, to be held against what came of it."""

        def value(of: Quantity | None) -> float | None:
            return None if of is None else of.value

        known = self.prediction if self.time is not None and not self.measured else None
        error, worst = (known.error, known.worst) if known else (None, None)
        return {
            "place": self.place.words(),
            "gpus": self.layout.gpus if self.place.gpus else 0,
            "layout": self.layout.words(self.place.gpus > 0),
            "memory_bytes": value(self.memory),
            "verdict": self.verdict.word if self.verdict else None,
            "seconds": value(self.time),
            "seconds_from": None if self.time is None else "calibration" if self.measured else "model",
            "seconds_error": {"mean": value(error), "largest": value(worst)} if error else None,
            "gpu_hours": value(self.gpu_hours),
            "usd": value(self.money),
        }


@dataclass(frozen=True)
class Alternative:
    """Settings that fit instead, as they can be pasted, on these GPUs."""

    settings: str
    gpus: str
    memory: Quantity
    verdict: Verdict
    time: Quantity | None


def needs(
    loaded: LoadedRecipe,
    stages: Sequence[str],
    where: Callable[[str], Machine],
    *,
    manifests: Mapping[str, dict[str, Any]] | None = None,
    measured: Mapping[str, Measured] | None = None,
    identities: Mapping[str, str] | None = None,
    machine: str = "",
    suggest: bool = True,
) -> list[Needs]:
    """What each of ``stages`` that trains needs.

    ``manifests``: the latest of each stage, whose token counts are used; ``measured``: calibrations, which count where
    their identity is the step's (``identities``) and their machine is ``machine``.  ``suggest``: look for what fits where
    something does not.  Raises :class:`UserError` for GPUs or models that are not known.
    """
    found = []
    for name in (stage for stage in TRAINING if stage in stages):
        calibration = (measured or {}).get(name)
        if calibration is not None and (
            calibration.identity != (identities or {}).get(name) or calibration.machine != machine
        ):
            calibration = None
        found.append(_needs(loaded.settings, name, where(name), manifests or {}, calibration, suggest))
    return found


def _needs(
    recipe: schema.Recipe,
    stage: str,
    place: Machine,
    manifests: Mapping[str, dict[str, Any]],
    calibration: Measured | None,
    suggest: bool,
) -> Needs:
    settings: Optimisation = getattr(recipe, stage)
    nemo = getattr(settings, "nemo", None)
    if place.named and nemo is not None and engine_of(settings) == "nemo":
        settings = replace(settings, nemo=replace(nemo, nodes=place.nodes, gpus=place.gpus))  # type: ignore[call-arg]
    shape = of_recipe(recipe.model)
    count = _processes(recipe, place)
    layout, work = read(stage, settings, recipe.model.context, count)
    tokens = sequence_tokens(recipe, stage, work.sequences, manifests.get("curate"), manifests.get(stage))
    if not work.packing:
        fill = max(1 / work.length, min(1.0, tokens.value / work.length))
        work = replace(work, fill=fill)
    fault = layout.fault(shape, work)
    plain = Needs(stage, place, shape, layout, work, fault)
    run = _tokens(settings, work, tokens)
    if fault is not None:
        return replace(plain, alternatives=_alternatives(stage, settings, plain, run)) if suggest else plain
    total = (
        memory.need(shape, layout, work).total
        if place.gpus or engine_of(settings) != "automodel"
        else _on_processors(_model(recipe.model, shape), settings, count)
    )
    room = _room(place, layout)
    judged = against(total, room) if math.isfinite(room.value) else None
    made = replace(plain, memory=total, verdict=judged)
    if calibration is not None:
        return _timed(made, calibration.run(looks(settings)), place, True)
    if place.gpu is None:
        if suggest and not made.feasible:
            made = replace(made, alternatives=_alternatives(stage, settings, made, run))
        return made
    prediction = speed.predict(shape, layout, work, place.gpu)
    time, _ = prediction.run(run.value)
    made = replace(made, prediction=prediction, tokens=run)
    made = _timed(made, replace(time, inputs=(run, *time.inputs[1:])), place, False)
    if suggest and not made.feasible:
        made = replace(made, alternatives=_alternatives(stage, settings, made, run))
    return made


def _processes(recipe: schema.Recipe, place: Machine) -> int:
    """Processes of a step on all machines together."""
    named = recipe.launch.processes if not place.assumed or not place.gpus else 0
    return (named or max(1, place.gpus)) * place.nodes


def _room(place: Machine, layout: Layout) -> Quantity:
    if place.gpus:
        source = place.gpu.name if place.gpu else "launch.gpu_memory_gb, or this machine's nvidia-smi"
        return given("memory of a GPU", place.gpu_bytes, "B", source)
    each = layout.gpus // place.nodes
    whole = given("main memory", place.main_bytes, "B", "this machine")
    return Quantity(
        "memory of a process",
        place.main_bytes / each,
        "B",
        "main memory / processes",
        (whole, given("processes", each)),
    )


def _model(model: schema.Model, shape: Shape) -> schema.Model:
    """The recipe's model with the numbers of its base, where that is here."""
    return replace(
        model,
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        layers=shape.depth,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        tie_embeddings=shape.tied,
    )


def _on_processors(model: schema.Model, settings: Optimisation, count: int) -> Quantity:
    """Of a process without GPUs: counted tensor by tensor, and held to real steps (``training/eager``)."""
    held = eager.footprint(model, settings, count, device="cpu")
    source = "pipeline/plan/training/eager"
    standing = [
        given(name, value, "B", source)
        for name, value in (
            ("weights", held.weights),
            ("adapters", held.adapters),
            ("reference policy", held.reference),
            ("optimiser states", held.optimiser),
            ("buckets", held.buckets),
        )
        if value
    ]
    passing = Quantity(
        "gradients, activations, logits and buffers",
        held.passing,
        "B",
        "the highest moment of all of them together, each of which is highest at another",
        tuple(
            given(f"{name}, at most", value, "B", source)
            for name, value in (
                ("gradients", held.gradients),
                ("activations", held.activations),
                ("logits and loss", held.logits),
                ("buffers", held.buffers),
            )
            if value
        ),
        source,
    )
    own = given("libraries of a process", LIBRARIES, "B", "measured; pipeline/plan/needs.py")
    return total_of("memory of a process", (*standing, passing, own))


def _tokens(settings: Optimisation, work: Work, each: Quantity) -> Quantity:
    steps = given("steps", settings.max_steps)
    batch = given("sequences of a step", settings.global_batch_size * work.sequences)
    value = settings.max_steps * settings.global_batch_size * work.sequences * each.value
    return Quantity(
        "tokens of the run",
        value,
        "token",
        "steps x sequences of a step x tokens of a sequence",
        (steps, batch, each),
    )


def _timed(made: Needs, time: Quantity, place: Machine, measured: bool) -> Needs:
    """With time, and what follows from it where there are GPUs of a known kind."""
    made = replace(made, time=time, measured=measured)
    if place.gpu is None:
        return made
    gpus = given("GPUs", made.layout.gpus)
    hours = Quantity("GPU-hours", time.value * gpus.value / 3600, "h", "time x GPUs", (time, gpus))
    try:
        cost: Quantity | None = money.cost(hours, place.gpu.name)
    except UserError:  # a kind without a price: the table says so where it is asked for
        cost = None
    return replace(made, gpu_hours=hours, money=cost, energy=money.energy(hours, place.gpu))


def _alternatives(stage: str, settings: Optimisation, made: Needs, run: Quantity) -> tuple[Alternative, ...]:
    """The nearest settings that fit; with times where the kind of GPU is known."""
    place, name = made.place, engine_of(settings)
    gpu = place.gpu or _stand_in(place, made.layout)
    if place.nodes > 1:  # more of them would be machines of this size, too
        gpu = replace(gpu, gpus_per_node=place.gpus, nvlink_gpus=min(gpu.nvlink_gpus, place.gpus))
    most = None if place.gpus else made.layout.gpus
    found = []
    for each in search.nearest(
        made.shape, made.layout, made.work, gpu, engine_name=name, most_gpus=most, limit=SHOWN
    ):
        size = gpu.gpus_per_node if place.gpus else each.layout.gpus
        words = paste(
            stage, (made.layout, made.work), (each.layout, each.work), name, size, gpus=not place.named
        )
        time = each.prediction.run(run.value)[0] if place.gpu is not None else None
        found.append(
            Alternative(words, _fleet(each.layout.gpus, size, place), each.memory, each.verdict, time)
        )
    return tuple(found)


def _fleet(count: int, size: int, place: Machine) -> str:
    """So many GPUs or processes in words that ``--gpus`` takes where the kind is known."""
    if not place.gpus:
        return f"{count} process{'es' if count > 1 else ''}"
    if place.gpu is None:
        return f"{count} GPU{'s' if count > 1 else ''}"
    kind = place.gpu.name
    return f"{count // size}x{size}x{kind}" if count > size and count % size == 0 else f"{count}x{kind}"


def _stand_in(place: Machine, layout: Layout) -> Gpu:
    """For a search by memory alone: a GPU with the memory that there is; its speed only ranks what is found."""
    each = place.gpu_bytes if place.gpus else place.main_bytes / (layout.gpus // place.nodes) - LIBRARIES
    return replace(gpu_of("H100-80GB"), name="this machine's", memory_gb=max(0.1, each / GIB))


def refusal(loaded: LoadedRecipe, each: Needs) -> str | None:
    """Why a step must not be run, with the nearest settings that fit; None where it may be."""
    if each.feasible:
        return None
    does = ["What does, quickest first:", *(line_of(alternative) for alternative in each.alternatives)]
    does = does if each.alternatives else []
    if each.fault is not None:
        said = f"{loaded.name}: {each.stage} cannot be spread over {each.place.words()}: {each.fault}"
        return "\n".join([said, *does])
    assert each.memory is not None
    assert each.verdict is not None
    room = each.verdict.share.inputs[1]
    parts = ", ".join(
        f"{item.name} {item}" for item in each.memory.inputs if item.value > 0.01 * each.memory.value
    )
    lines = [
        f"{loaded.name}: {each.stage} does not fit: {each.memory} for each of {each.layout.gpus} "
        f"{'GPUs' if each.place.gpus else 'processes'}, which {'have' if each.layout.gpus > 1 else 'has'} {room} "
        f"({parts})"
    ]
    return "\n".join([*lines, *does])


def line_of(alternative: Alternative) -> str:
    """An alternative in a line that can be pasted."""
    time = f", {alternative.time}" if alternative.time is not None else ""
    words = f'SET="{alternative.settings}"  ' if alternative.settings else ""
    return f"  {words}({alternative.gpus}: {alternative.memory}, {alternative.verdict.word}{time})"


def plain(each: Needs) -> dict[str, Any]:
    """For ``--json``."""
    return {
        "stage": each.stage,
        **each.record(),
        "fault": each.fault,
        "feasible": each.feasible,
        "layout_fields": dataclasses.asdict(each.layout),
        "quantities": [quantity.as_dict() for quantity in each.quantities()],
        "limits": list(each.prediction.limits) if each.prediction and not each.measured else [],
        "alternatives": [
            {
                "set": alternative.settings,
                "gpus": alternative.gpus,
                "memory_bytes": alternative.memory.value,
                "verdict": alternative.verdict.word,
                "seconds": alternative.time.value if alternative.time else None,
            }
            for alternative in each.alternatives
        ],
    }
