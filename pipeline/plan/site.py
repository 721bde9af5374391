"""Whether a site has what a recipe's training needs; refused in seconds where it has not.

The estimate is :mod:`pipeline.plan.memory`'s.  On this machine GPUs and their memory are read from
``nvidia-smi``, main memory from the kernel; on a cluster they are what the site file says.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from dataclasses import dataclass

from pipeline import schema
from pipeline.errors import UserError
from pipeline.plan.memory import GB, need
from pipeline.recipe import LoadedRecipe
from pipeline.schema.training import Optimisation

TRAINING = ("pretrain", "train", "reward", "align")
# What makes a step smaller, the least change first.
SMALLER = (
    "peft=lora",
    "peft=lora {s}.precision=bf16-weights",
    "peft=lora {s}.precision=bf16-weights {s}.parallel.strategy=fsdp2 {s}.parallel.recompute=full {s}.micro_batch_size=1",
    "peft=qlora {s}.parallel.recompute=full {s}.micro_batch_size=1",
)


@dataclass(frozen=True)
class Machine:
    """GPUs that a step may use, the memory of the smallest, and the machine's own memory, in bytes."""

    gpus: int
    gpu_bytes: float
    main_bytes: float

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        main = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return cls(0, 0.0, main)
        query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            sizes = [float(line) * 2**20 for line in done.stdout.split()]
        except (OSError, ValueError, subprocess.SubprocessError):
            sizes = []
        return cls(len(sizes), min(sizes, default=0.0), main)

    def words(self) -> str:
        """The machine as a reader thinks of it."""
        if self.gpus:
            return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.gpu_bytes / GB:.0f} GB"
        return f"no NVIDIA GPU and {self.main_bytes / GB:.0f} GB of memory"


def check(loaded: LoadedRecipe, stages: list[str], machine: Machine | None = None) -> None:
    """Raise :class:`UserError` when one of ``stages`` cannot be trained on this machine.

    The message says what is missing and the nearest settings that fit.
    """
    recipe = loaded.settings
    machine = machine or Machine.here()
    for name in (stage for stage in TRAINING if stage in stages):
        settings: Optimisation = getattr(recipe, name)
        fault = _fault(recipe, settings, machine)
        if fault:
            raise UserError(
                f"{loaded.name} cannot run {name} here: {fault}\n{_advice(loaded, name, machine)}"
            )


def _fault(recipe: schema.Recipe, settings: Optimisation, machine: Machine) -> str | None:
    if recipe.launch.gpus and not machine.gpus:
        return (
            f"it is made for {recipe.launch.gpus} GPU{'s' if recipe.launch.gpus > 1 else ''} of "
            f"{recipe.launch.gpu_memory_gb} GB, and there is {machine.words()}."
        )
    if getattr(settings, "peft", "none") == "qlora" and not machine.gpus:
        return "qlora needs an NVIDIA GPU."
    count = recipe.launch.processes or max(1, machine.gpus)
    wanted = need(recipe.model, settings, count)
    room = machine.gpu_bytes if machine.gpus else machine.main_bytes / count
    if wanted.total <= room:
        return None
    parts = {
        "weights": wanted.weights,
        "gradients": wanted.gradients,
        "optimiser states": wanted.optimiser,
        "activations": wanted.activations,
        "a frozen copy": wanted.reference,
    }
    listed = ", ".join(f"{part} {size / GB:.1f}" for part, size in parts.items() if size)
    return (
        f"it needs an estimated {wanted.total / GB:.0f} GB for each of {count} processes ({listed}; pipeline/plan/memory.py), "
        f"and there is {machine.words()}."
    )


def _advice(loaded: LoadedRecipe, name: str, machine: Machine) -> str:
    """What fits: settings of this recipe, or another site."""
    recipe = loaded.settings
    if machine.gpus and name != "pretrain":
        settings = getattr(recipe, name)
        for pattern in SMALLER:
            words = pattern.format(s=name)
            changed = dataclasses.replace(settings, parallel=dataclasses.replace(settings.parallel))
            for word in f"{name}.{words}".split():
                key, value = word.removeprefix(f"{name}.").split("=")
                target = changed.parallel if key.startswith("parallel.") else changed
                setattr(target, key.removeprefix("parallel."), int(value) if value.isdigit() else value)
            if _fault(recipe, changed, machine) is None:
                return f'What fits here: SET="{name}.{words}"'
    return (
        "What can be done: submit it to a cluster (SITE=slurm or SITE=kubernetes; OPTIONS=--dry-run shows the jobs), "
        "or try the mechanism here with RECIPE=llama-tiny, which needs no GPU."
    )
