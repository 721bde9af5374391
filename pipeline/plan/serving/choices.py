"""Which configurations of a replica hold a model at all, and the nearest that does where one does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from pipeline.errors import UserError
from pipeline.plan.serving.engine import PRECISIONS, RESERVED, Efficiency, Engine, Precision
from pipeline.plan.serving.interfaces import Gpu, Shape

TENSOR = (1, 2, 4, 8)  # GPUs of one machine
GB = 1e9


def engines(
    shape: Shape,
    gpu: Gpu,
    precision: Precision,
    cache: str,
    efficiency: Efficiency,
    tensor: int | None = None,
) -> list[Engine]:
    """The replicas to choose from: of the tensor-parallel size asked for, or of each that divides the heads.

    Raises :class:`UserError` where the GPU has no units for the precision, or the size asked for does not divide the heads
    or is more than a machine joins.
    """
    if tensor is not None and tensor > joined(gpu):
        raise UserError(
            f"--tensor-parallel {tensor}: at most {joined(gpu)} of {gpu.name} are joined in a machine or rack, and a replica's GPUs "
            "must be"
        )
    sizes = (
        [tensor]
        if tensor is not None
        else [size for size in TENSOR if not shape.heads % size and size <= joined(gpu)]
    )
    return [Engine(shape, gpu, precision, cache, size, efficiency) for size in sizes]


def joined(gpu: Gpu) -> int:
    """How many GPUs of a kind can share a replica: those of a machine, or of a rack that NVLink joins."""
    return max(gpu.gpus_per_node, gpu.nvlink_gpus)


def holding(tried: list[Engine], tokens: int, gpus: Iterable[Gpu]) -> list[Engine]:
    """Those of ``tried`` that hold the model and one request of so many tokens.

    Raises :class:`UserError` with what is missing and the nearest configurations that hold them, where none does.
    """
    found = [engine for engine in tried if engine.largest_batch(tokens)]
    if found:
        return found
    largest = max(tried, key=lambda engine: engine.tensor)
    near = [words(engine) for engine in itertools.islice(nearest(largest, tokens, gpus), 3)]
    advice = f"What fits: {'; '.join(near)}" if near else "Nothing that is known here holds it on one machine"
    raise UserError(
        f"{_words(largest)} cannot serve {largest.shape.name}: {_missing(largest, tokens)}. {advice}."
    )


def nearest(engine: Engine, tokens: int, gpus: Iterable[Gpu]) -> Iterator[Engine]:
    """Replicas that hold what ``engine`` does not, one for each kind of GPU, the fewest and mildest changes first.

    Of as many changes the same kind of GPU comes first, then the most bits (fewer cost quality), then the fewest GPUs.
    """
    found: list[tuple[tuple[float, ...], Engine]] = []
    for gpu, precision, size in itertools.product(gpus, PRECISIONS.values(), TENSOR):
        if precision.bytes > engine.precision.bytes or size > joined(gpu):
            continue
        try:
            other = Engine(engine.shape, gpu, precision, engine.cache, size, engine.efficiency)
        except UserError:
            continue  # that GPU does not compute in it, or the size divides no heads
        if other.largest_batch(tokens):
            another, fewer = gpu.name != engine.gpu.name, precision.name != engine.precision.name
            found.append(((another + fewer, another, -precision.bytes, size), other))
    shown: set[str] = set()
    for _, other in sorted(found, key=lambda one: one[0]):
        if other.gpu.name not in shown:
            shown.add(other.gpu.name)
            yield other


def words(engine: Engine) -> str:
    """A replica as options to paste."""
    return f"--gpu {engine.gpu.name} --precision {engine.precision.name} --tensor-parallel {engine.tensor}"


def _words(engine: Engine) -> str:
    count = f"{engine.tensor} x " if engine.tensor > 1 else ""
    return f"{count}{engine.gpu.name} in {engine.precision.name}"


def _missing(engine: Engine, tokens: int) -> str:
    weights = engine.weight_bytes / engine.tensor
    room = engine.memory_bytes - RESERVED
    if weights >= room:
        return f"the weights take {weights / GB:.1f} GB of each GPU, and {room / GB:.1f} GB of its memory can be used"
    return (
        f"the cache of one request of {tokens:,} tokens takes {engine.cache_bytes(tokens) / GB:.2f} GB of each GPU, and "
        f"{engine.cache_room / GB:.2f} GB are left beside {weights / GB:.1f} GB of weights"
    )
