"""Where a step of a recipe runs: how many GPUs of which kind, or this machine's processors.

In this order: GPUs that the caller names (``--gpus 2x8xH100-80GB``); those of a cluster's site; those of this machine; and,
where a recipe is made for GPUs and there are none, the recipe's own, which is said (``assumed``).
"""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline import schema
from pipeline.errors import UserError
from pipeline.graph import READING, TRAINING
from pipeline.launch import muster
from pipeline.plan import hardware
from pipeline.plan.hardware import Fleet, Gpu
from pipeline.plan.training.verdict import room

GB = 1e9


@dataclass(frozen=True)
class Machine:
    """GPUs that a step may use, the memory of the smallest, and the machine's own memory, in bytes.

    ``nodes``: how many such machines share a training step, and ``assigned`` whether a cluster has said so.
    ``gpu`` is their kind, where it is known; ``assumed``: these are not the GPUs at hand, but the recipe's own or, where they are
    ``named``, those that the caller asks about.
    """

    gpus: int
    gpu_bytes: float
    main_bytes: float
    nodes: int = 1
    assigned: bool = False
    gpu: Gpu | None = None
    assumed: bool = False
    named: bool = False

    @classmethod
    def here(cls, kind: str | None = None) -> Machine:
        """This machine; ``kind`` of GPU stands for the name that ``nvidia-smi`` tells."""
        main = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return cls(0, 0.0, main, muster.nodes(), muster.assigned())
        query = [tool, "--query-gpu=memory.total,name", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            lines = [line.split(",", 1) for line in done.stdout.splitlines() if line.strip()]
            sizes = [float(size) * 2**20 for size, _ in lines]
        except (OSError, ValueError, subprocess.SubprocessError):
            lines, sizes = [], []
        named = kind or (lines[0][1].strip() if lines else None)
        return cls(
            len(sizes),
            min(sizes, default=0.0),
            main,
            muster.nodes(),
            muster.assigned(),
            _known(named, bool(kind)),
        )

    @classmethod
    def of(cls, fleet: Fleet) -> Machine:
        """GPUs that somebody named; of main memory nothing is known."""
        return cls(fleet.per_node, room(fleet.gpu), float("inf"), fleet.nodes, True, fleet.gpu, True, True)

    def words(self) -> str:
        """The machine as a reader thinks of it."""
        if self.nodes > 1:
            return f"{self.nodes} machines, each with {replace(self, nodes=1).words()}"
        if self.gpu:
            return f"{self.gpus} x {self.gpu.name}"
        if self.gpus:
            return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.gpu_bytes / GB:.0f} GB"
        if self.main_bytes == float("inf"):
            return "a machine without GPUs"
        return f"no NVIDIA GPU and {self.main_bytes / GB:.0f} GB of memory"


def _known(name: str | None, asked: bool) -> Gpu | None:
    """The kind of a name; None for one that the table does not have, unless a person gave it."""
    if name is None:
        return None
    try:
        return hardware.gpu(name)
    except UserError:
        if asked:
            raise
        return None


def ask_for_gpus(recipe: schema.Recipe) -> Callable[[str], Machine]:
    """Have a cluster's site that says nothing of GPUs and machines ask for those that the recipe was made for.

    Returns what the step of a stage then has; of memory, what the recipe counts on.
    """
    wanted, site = recipe.launch, recipe.site
    kind = _known(site.gpu or wanted.gpu, True)
    memory = (wanted.gpu_memory_gb or float("inf")) * GB
    if kind is not None and (site.gpu or wanted.gpu_memory_gb in (0, kind.memory_gb)):
        memory = room(kind)
    if site.kind != "slurm":
        site.kubernetes.gpus = site.kubernetes.gpus or wanted.gpus
        return lambda stage: Machine(
            schema.for_stage(site.kubernetes, stage).gpus, memory, float("inf"), gpu=kind
        )
    site.slurm.nodes = site.slurm.nodes or wanted.nodes
    if not site.slurm.gpus_per_node and wanted.gpus:
        for name in (*TRAINING, *READING):
            site.slurm.stages.setdefault(name, {}).setdefault("gpus_per_node", wanted.gpus)

    for name in TRAINING:
        if getattr(getattr(recipe, name), "engine", "automodel") != "automodel":
            site.slurm.stages.setdefault(name, {}).setdefault("nodes", 1)  # it asks for machines itself

    def machine(stage: str) -> Machine:
        slurm = schema.for_stage(site.slurm, stage)
        return Machine(
            slurm.gpus_per_node, memory, float("inf"), max(1, slurm.nodes), assigned=True, gpu=kind
        )

    return machine


def places(recipe: schema.Recipe, fleet: Fleet | None = None) -> Callable[[str], Machine]:
    """For plans: what the step of a stage has, or would have.  The recipe is left as it is."""
    if fleet is not None:
        named = Machine.of(fleet)
        return lambda stage: named
    if recipe.site.kind != "local":
        return ask_for_gpus(copy.deepcopy(recipe))
    here = Machine.here(recipe.site.gpu)
    if here.gpus or not recipe.launch.gpus:
        return lambda stage: here
    kind, launch = _known(recipe.launch.gpu, True), recipe.launch
    memory = room(kind) if kind else launch.gpu_memory_gb * GB or float("inf")
    own = Machine(launch.gpus, memory, float("inf"), launch.nodes, True, kind, True)
    return lambda stage: own
