"""Whether a step fits on its GPUs: up to 90% of their memory it fits, up to 100% it is tight, above it does not fit.

A GPU's memory is its name's figure in GiB, of which the driver keeps some: an 80 GB H100 reports 79.65 GiB, a 141 GB H200
140.4 (``nvidia-smi``).  Of GDDR6 with error correction, a sixteenth goes to check bits.  The tenth that is kept free is for what the
estimate leaves out: uneven experts and sequences, a library's workspaces, another process on the GPU.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.hardware import Gpu
from pipeline.plan.quantity import Quantity, given

FITS, TIGHT, NOT = "fits", "tight", "does not fit"
COMFORTABLE = 0.9
GIB = 2**30
DRIVER = 0.005
CHECKED = ("L40S", "L4", "A40", "A10", "A10G", "T4")  # GDDR6 with error correction


def room(gpu: Gpu) -> float:
    """Bytes of a GPU that a process can have."""
    return gpu.memory_gb * GIB * (1 - DRIVER) * (15 / 16 if gpu.name in CHECKED else 1)


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
        given("GPU memory", room(gpu), "B", f"{gpu.name}, {gpu.memory_gb:g} GiB less the driver's part"),
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
