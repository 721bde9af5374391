"""What the deployed model of a recipe holds: weights, key-value cache, and how many requests that is at once.

On GPUs it is the engine of :mod:`pipeline.plan.serving.engine` in the export's precision, one replica over
``export.serving.tensor x pipeline`` GPUs; on processors OpenVINO's weights and the cache that ``export.kv_cache_gb`` sets aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.plan import hardware
from pipeline.plan.place import Machine
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.serving import evidence, room
from pipeline.plan.serving.engine import PRECISIONS, Engine
from pipeline.plan.shapes import of_recipe
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.verdict import NOT, word
from pipeline.serving.repository import served_context
from pipeline.serving.targets import TARGETS

# The planner's precision of an export's weights; others bear the same name.
ALIKE = {"int8-sq": "int8", "w4a8-awq": "int4-awq"}
OPENVINO_BYTES = {"fp32": 4.0, "bf16": 2.0, "int8": 1.0, "int4": 0.578}


@dataclass(frozen=True)
class Deployment:
    """``quantities`` of one replica, and whether it fits; ``words`` say it in a line."""

    words: str
    verdict: str
    quantities: tuple[Quantity, ...]

    def plain(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "words": self.words,
            "verdict": self.verdict,
            "quantities": [each.as_dict() for each in self.quantities],
        }


def deployment(recipe: schema.Recipe, place: Machine) -> Deployment | None:
    """What serving the recipe's model takes; None where the kind of GPU that would serve it is not known.

    Raises :class:`UserError` for a precision that the GPU does not compute in, or a model that does not divide.
    """
    shape, export = of_recipe(recipe.model), recipe.export
    trained = not {"pretrain", "train", "align"}.isdisjoint(recipe.stages)
    known = shape.context or max(recipe.model.context, export.serving.max_length or 0)
    length = served_context(export, recipe.model.context if trained else None, known)
    if not TARGETS[export.target].gpu:
        return _on_processors(shape, export, length, place)
    serving = export.serving
    tensor, count = serving.tensor, serving.tensor * serving.pipeline
    try:
        gpu = hardware.gpu(export.gpu) if export.gpu else place.gpu
    except UserError:
        words = f"{count} x {export.gpu} (export.gpu), of which configs/gpus.yaml knows nothing"
        return Deployment(words, "unknown", ())
    if gpu is None:
        return None
    weights = ALIKE.get(export.weights, export.weights)
    if weights not in PRECISIONS:
        raise UserError(f"export.weights = {export.weights}: the planner knows {', '.join(PRECISIONS)}")
    for name, parts, of in (("tensor", tensor, shape.heads), ("pipeline", serving.pipeline, shape.depth)):
        if of and of % parts:
            raise UserError(
                f"export.serving.{name} = {parts} does not divide the {of} {'heads' if name == 'tensor' else 'layers'}"
            )
    cache = "fp8" if export.kv_cache == "fp8" else "bf16"
    engine = Engine(shape, gpu, PRECISIONS[weights], cache, tensor, evidence.efficiency(), serving.pipeline)
    found = room.memory(engine, length)
    batch = engine.largest_batch(length)
    told = min(batch, serving.max_batch_size)
    own = f"{count} x {gpu.name}{' (export.gpu)' if export.gpu else ''}, {export.weights}: {found[1]} of weights on each GPU"
    if batch < 1:
        return Deployment(
            f"{own}, which has {Quantity('', engine.memory_bytes, 'B')}: {NOT}", NOT, tuple(found)
        )
    verdict = word(engine.weight_bytes / count / engine.memory_bytes)
    words = f"{own}, {found[3]} for caches; {told:,} requests of {length:,} tokens at once: {verdict}"
    return Deployment(words, verdict, tuple(found))


def _on_processors(shape: Shape, export: schema.Export, length: int, place: Machine) -> Deployment:
    name, models = export.weights, 1 + len(export.adapters)
    weights = Quantity(
        "weights",
        shape.parameters * OPENVINO_BYTES[name],
        "B",
        f"parameters x {OPENVINO_BYTES[name]:g} B",
        (given("parameters", shape.parameters, "parameter", shape.name),),
        "OpenVINO IR",
    )
    cache = given("key-value cache", export.kv_cache_gb * 2.0**30, "B", "export.kv_cache_gb")
    count = given("models", models, source="the base and each merged adapter")
    whole = Quantity(
        "memory of the server",
        (weights.value + cache.value) * models,
        "B",
        "models x (weights + cache)",
        (count, weights, cache),
    )
    each = Quantity(
        "cache of a request",
        shape.cache_bytes(length, 4.0),
        "B",
        "fp32 keys and values of its tokens",
        (given("tokens of a request", length, "token", "export.serving.max_length or model.context"),),
    )
    verdict = word(whole.value / place.main_bytes)
    requests = int(cache.value // each.value)
    words = (
        f"OpenVINO in {name}: {whole} of main memory with the cache full; {requests:,} requests of {length:,} tokens at once: "
        f"{verdict}"
    )
    return Deployment(words, verdict, (whole, each))
