"""What steps hold that only read a model: sampling, evaluation, export.

A model is spread over the GPUs, 2 bytes a parameter, or held in main memory, 4 bytes; the export writes its bundle
from main memory, and then has two models in fp32 beside each other: the bundle's on GPUs where there are any, and what the
written checkpoint means in main memory.  A tenth is added for fragmentation.  Nothing here was held to a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.shapes.shape import Shape

FRAGMENTATION = 1.1


@dataclass(frozen=True)
class Held:
    """Bytes that a step holds on all its GPUs together, and in main memory."""

    gpus: float
    main: float


def reading(shape: Shape, stage: str, gpu_bytes: float) -> Held:
    """What ``sample``, ``evaluate`` or ``export`` holds, with so many bytes on all GPUs together (0: none)."""
    whole = FRAGMENTATION * shape.parameters
    if stage != "export":
        return Held(2 * whole, 0.0) if gpu_bytes else Held(0.0, 4 * whole)
    # The reference goes where there is room, and the rest of it stays in main memory.
    placed = min(4 * whole, gpu_bytes)
    return Held(placed, 4 * whole + 4 * whole - placed)
