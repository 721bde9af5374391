"""Whether a step fits on its GPUs: up to 90% of their memory it fits, up to 100% it is tight, above it does not fit.

What a process can have is :attr:`pipeline.plan.hardware.Gpu.memory_bytes`.  The tenth that is kept free is for what the
estimate leaves out: uneven experts and sequences, a library's workspaces, another process on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.hardware import Gpu
from pipeline.plan.quantity import Quantity, given

FITS, TIGHT, NOT = "fits", "tight", "does not fit"
COMFORTABLE = 0.9


def room(gpu: Gpu) -> float:
    """Bytes of a GPU that a process can have."""
    return gpu.memory_bytes


def word(share: float) -> str:
    """The verdict for a share of the GPU's memory."""
    return FITS if share <= COMFORTABLE else TIGHT if share <= 1 else NOT


@dataclass(frozen=True)
class Verdict:
    """``word`` is ``fits``, ``tight`` or ``does not fit``; ``share`` the need as a share of the GPU's memory."""

    word: str
    share: Quantity

    @property
    def feasible(self) -> bool:
        """Whether it can be run."""
        return self.word != NOT


def judge(total: Quantity, gpu: Gpu) -> Verdict:
    """The verdict on so many bytes on each GPU."""
    return against(
        total,
        given("GPU memory", room(gpu), "B", f"{gpu.name}: {gpu.memory_gb:g} GiB less the driver's part"),
    )


def against(total: Quantity, memory: Quantity) -> Verdict:
    """The verdict on so many bytes where there are so many."""
    return Verdict(
        word(total.value / memory.value),
        Quantity(
            f"share of {memory.name}",
            total.value / memory.value,
            "",
            f"{total.name} / {memory.name}",
            (total, memory),
            "pipeline/plan/training/verdict.py",
        ),
    )
