"""Whether a site has what a recipe's steps need; refused in seconds where it has not.

The estimate is :mod:`pipeline.plan.memory`'s, of the base model's shape where there is one.  On
this machine GPUs and their memory are read from ``nvidia-smi``, main memory from the kernel; a cluster
is asked for the GPUs that its site file says, or else for those that the recipe was made for.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.graph import READING, TRAINING
from pipeline.launch import muster
from pipeline.plan.layout import layout_fault
from pipeline.plan.memory import GB, need, reading
from pipeline.recipe import LoadedRecipe
from pipeline.runner.base import folder
from pipeline.schema.training import Optimisation

# What makes a step smaller, the least change first.
SMALLER = (
    "peft=lora",
    "peft=lora {s}.precision=bf16-weights",
    "peft=lora {s}.precision=bf16-weights {s}.parallel.strategy=fsdp2 {s}.parallel.recompute=full {s}.micro_batch_size=1",
)

ELSEWHERE = (
    "What can be done: submit it to a cluster (SITE=slurm or SITE=kubernetes; OPTIONS=--dry-run shows the jobs), "
    "or try the mechanism here with RECIPE=llama-tiny, which needs no GPU."
)


@dataclass(frozen=True)
class Machine:
    """GPUs that a step may use, the memory of the smallest, and the machine's own memory, in bytes.

    ``nodes``: how many such machines share a training step, and ``assigned`` whether a cluster has said so.
    """

    gpus: int
    gpu_bytes: float
    main_bytes: float
    nodes: int = 1
    assigned: bool = False

    @classmethod
    def here(cls) -> Machine:
        """This machine."""
        main = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return cls(0, 0.0, main, muster.nodes(), muster.assigned())
        query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            sizes = [float(line) * 2**20 for line in done.stdout.split()]
        except (OSError, ValueError, subprocess.SubprocessError):
            sizes = []
        return cls(len(sizes), min(sizes, default=0.0), main, muster.nodes(), muster.assigned())

    def words(self) -> str:
        """The machine as a reader thinks of it."""
        if self.nodes > 1:
            return f"{self.nodes} machines, each with {replace(self, nodes=1).words()}"
        if self.gpus:
            return f"{self.gpus} GPU{'s' if self.gpus > 1 else ''} of {self.gpu_bytes / GB:.0f} GB"
        return f"no NVIDIA GPU and {self.main_bytes / GB:.0f} GB of memory"


def check(loaded: LoadedRecipe, stages: list[str], where: Callable[[str], Machine] | None = None) -> None:
    """Raise :class:`UserError` when one of ``stages`` cannot be trained, or its model be held, where it would run.

    ``where`` gives the machine of a stage; this one unless given.  The message says what is missing and the
    nearest settings that fit.
    """
    recipe = loaded.settings
    here = Machine.here() if where is None else None
    for name in (stage for stage in TRAINING if stage in stages):
        settings: Optimisation = getattr(recipe, name)
        if getattr(settings, "engine", "automodel") != "automodel":
            continue  # it looks for itself, and builds what can be built without GPUs
        machine = here if where is None else where(name)
        assert machine is not None
        fault = _fault(recipe, settings, machine, name)
        if fault:
            raise UserError(
                f"{loaded.name} cannot run {name} here: {fault}\n{_advice(loaded, name, machine)}"
            )
    for name in (stage for stage in READING if stage in stages):
        machine = here if where is None else where(name)
        assert machine is not None
        fault = _too_large(recipe, machine, name)
        if fault:
            raise UserError(f"{loaded.name} cannot run {name} here: {fault}\n{ELSEWHERE}")


def shape(model: schema.Model) -> schema.Model:
    """The model with the shape of its base, where that is on this machine."""
    found = folder(model) if model.base is not None else None
    try:
        config = json.loads((found / "config.json").read_text(encoding="utf-8")) if found else {}
    except (OSError, ValueError):  # told where the base is checked
        config = {}
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads"}
    names |= {name: name for name in ("vocab_size", "hidden_size", "intermediate_size")}
    known: dict[str, Any] = {ours: int(config[theirs]) for ours, theirs in names.items() if theirs in config}
    tied = bool(config.get("tie_word_embeddings", model.tie_embeddings))
    return dataclasses.replace(model, tie_embeddings=tied, **known)


def ask_for_gpus(recipe: schema.Recipe) -> Callable[[str], Machine]:
    """Have a cluster's site that says nothing of GPUs and machines ask for those that the recipe was made for.

    Returns what the step of a stage then has; of memory, what the recipe counts on.
    """
    wanted, site = recipe.launch, recipe.site
    memory = (wanted.gpu_memory_gb or float("inf")) * GB
    if site.kind != "slurm":
        site.kubernetes.gpus = site.kubernetes.gpus or wanted.gpus
        return lambda stage: Machine(schema.for_stage(site.kubernetes, stage).gpus, memory, float("inf"))
    site.slurm.nodes = site.slurm.nodes or wanted.nodes
    if not site.slurm.gpus_per_node and wanted.gpus:
        for name in (*TRAINING, *READING):
            site.slurm.stages.setdefault(name, {}).setdefault("gpus_per_node", wanted.gpus)

    for name in TRAINING:
        if getattr(getattr(recipe, name), "engine", "automodel") != "automodel":
            site.slurm.stages.setdefault(name, {}).setdefault("nodes", 1)  # it asks for machines itself

    def machine(stage: str) -> Machine:
        slurm = schema.for_stage(site.slurm, stage)
        return Machine(slurm.gpus_per_node, memory, float("inf"), max(1, slurm.nodes), assigned=True)

    return machine


def _fault(recipe: schema.Recipe, settings: Optimisation, machine: Machine, name: str) -> str | None:
    if recipe.launch.gpus and not machine.gpus:
        return (
            f"it is made for {recipe.launch.gpus} GPU{'s' if recipe.launch.gpus > 1 else ''} of "
            f"{recipe.launch.gpu_memory_gb} GB, and there is {machine.words()}."
        )
    if recipe.launch.nodes > machine.nodes and not machine.assigned:
        return (
            f"it is made for {recipe.launch.nodes} machines (launch.nodes), which SITE=slurm can give a step, and there is "
            f"{machine.words()}."
        )
    here = recipe.launch.processes or max(1, machine.gpus)
    count = here * machine.nodes
    fault = layout_fault(settings, name, count)
    if fault:
        return fault
    wanted = need(shape(recipe.model), settings, count)
    room = machine.gpu_bytes if machine.gpus else machine.main_bytes / here
    if wanted.total <= room:
        return None
    parts = {
        "weights": wanted.weights,
        "gradients": wanted.gradients,
        "optimiser states": wanted.optimiser,
        "activations": wanted.activations,
        "a frozen copy": wanted.reference,
        "buffers": wanted.buffers,
    }
    listed = ", ".join(f"{part} {size / GB:.1f}" for part, size in parts.items() if size)
    return (
        f"it needs an estimated {wanted.total / GB:.0f} GB for each of {count} processes ({listed}; pipeline/plan/memory.py), "
        f"and there is {machine.words()}."
    )


def _too_large(recipe: schema.Recipe, machine: Machine, name: str) -> str | None:
    """Why there is no room for a model that a step only reads."""
    gpu_bytes = machine.gpus * machine.gpu_bytes if machine.gpus else 0.0
    held = reading(shape(recipe.model), name, gpu_bytes)
    for wanted, room, place in (
        (held.gpus, gpu_bytes, "on its GPUs"),
        (held.main, machine.main_bytes, "in main memory"),
    ):
        if wanted > room:
            return (
                f"it holds an estimated {wanted / GB:.0f} GB {place} (pipeline/plan/memory.py), and there are "
                f"{room / GB:.0f} GB."
            )
    return None


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
            if _fault(recipe, changed, machine, name) is None:
                return f'What fits here: SET="{name}.{words}"'
    return ELSEWHERE
