"""What a replica holds, as numbers with their derivations: weights, the cache of a request, and how many requests."""

from __future__ import annotations

from pipeline.plan.quantity import Quantity, given, total
from pipeline.plan.serving.engine import CACHE_SHARE, MOST_REQUESTS, RESERVED, Engine

ROOFLINE = "pipeline/plan/serving/engine.py"
ASKED = "asked for"


def memory(engine: Engine, tokens: int) -> list[Quantity]:
    """What a replica holds: weights, cache of a request, room for caches, largest batch."""
    shape, gpu = engine.shape, engine.gpu
    tensor = given("tensor-parallel size", engine.tensor, "", "chosen")
    outside = shape.parameters - shape.layer_parameters
    layers = Quantity(
        "layers",
        shape.layer_parameters * engine.precision.bytes,
        "B",
        "parameters of the layers x bytes a weight",
        (
            given("parameters of the layers", shape.layer_parameters, "parameter", shape.name),
            given("bytes a weight", engine.precision.bytes, "", f"{engine.precision.name}, with its scales"),
        ),
    )
    rest = Quantity(
        "embeddings and output matrix",
        outside * 2.0,
        "B",
        "parameters x 2 B, left in bf16",
        (given("parameters outside the layers", outside, "parameter", shape.name),),
    )
    weights = total("weights", (layers, rest))
    stages = given("pipeline stages", engine.stages, "", "chosen")
    share = Quantity(
        "weights on a GPU",
        weights.value / (engine.tensor * engine.stages),
        "B",
        "weights / (tensor-parallel size x pipeline stages)"
        if engine.stages > 1
        else "weights / tensor-parallel size",
        (weights, tensor, stages) if engine.stages > 1 else (weights, tensor),
    )
    length = given("tokens of a request", tokens, "token", "input + output, " + ASKED)
    whole = engine.cache_bytes(tokens) * engine.cache_shards * engine.stages
    cache = Quantity(
        "cache of a request", whole, "B", f"bytes of its layers in {engine.cache}", (length,), shape.name
    )
    cache_share = Quantity(
        "cache of a request on a GPU",
        engine.cache_bytes(tokens),
        "B",
        "cache / GPUs that divide it (with more GPUs than key-value heads they keep copies)",
        (cache, given("GPUs that divide it", engine.cache_shards * engine.stages, "", shape.name)),
        ROOFLINE,
    )
    usable = given(
        "memory of a GPU",
        engine.memory_bytes,
        "B",
        f"{gpu.name}: {gpu.memory_gb:g} GiB less the driver's part",
    )
    room = Quantity(
        "room for caches on a GPU",
        engine.cache_room,
        "B",
        f"{CACHE_SHARE} x (memory - weights - reserved)",
        (usable, share, given("reserved", RESERVED, "B", "CUDA, communicator and activations; " + ROOFLINE)),
        "TensorRT-LLM performance overview v0.17: kv_cache_free_gpu_mem_fraction",
    )
    batch = Quantity(
        "largest batch",
        engine.largest_batch(tokens),
        "",
        f"room / cache of a request, at most {MOST_REQUESTS}",
        (room, cache_share),
        ROOFLINE,
    )
    return [weights, share, cache, room, batch]
