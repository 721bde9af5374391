"""Whether a site has what a recipe's steps need; refused in seconds where it has not, with the nearest that fits.

What a training step needs is :mod:`pipeline.plan.needs`', what one holds that only reads a model
:mod:`pipeline.plan.reading`'s, and where it runs :mod:`pipeline.plan.place`'s.  A refusal of memory can be overridden with a
reason (``plan.override_reason``), which the step's manifest keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.errors import UserError
from pipeline.graph import READING, TRAINING
from pipeline.plan import needs as planning
from pipeline.plan.calibrate import Measured
from pipeline.plan.needs import Needs
from pipeline.plan.place import GB, Machine
from pipeline.plan.reading import reading
from pipeline.plan.shapes import of_recipe
from pipeline.recipe import LoadedRecipe

ELSEWHERE = (
    "What can be done: submit it to a cluster (SITE=slurm or SITE=kubernetes; OPTIONS=--dry-run shows the jobs), "
    "or try the mechanism here with RECIPE=llama-tiny, which needs no GPU."
)
OVERRIDE = (
    "Or, if you know better, with a reason that is recorded:  SET='plan.override_reason=\"why it fits\"'"
)


def check(
    loaded: LoadedRecipe,
    stages: list[str],
    where: Callable[[str], Machine] | None = None,
    *,
    manifests: Mapping[str, dict[str, Any]] | None = None,
    measured: Mapping[str, Measured] | None = None,
    identities: Mapping[str, str] | None = None,
    machine: str = "",
) -> dict[str, dict[str, Any]]:
    """Raise :class:`UserError` when one of ``stages`` cannot be trained, or its model be held, where it would run.

    ``where`` gives the machine of a stage; this one unless given.  The message says what is missing and the
    nearest settings that fit.  Returns what was planned for each stage that trains, as its manifest keeps it; for the other
    arguments see :func:`pipeline.plan.needs.needs`.
    """
    recipe = loaded.settings
    here = Machine.here(recipe.site.gpu) if where is None else None
    reason = recipe.plan.override_reason
    kept: dict[str, dict[str, Any]] = {}

    def place(stage: str) -> Machine:
        found = here if where is None else where(stage)
        assert found is not None
        return found

    for name in (stage for stage in TRAINING if stage in stages):
        if getattr(getattr(recipe, name), "engine", "automodel") != "automodel":
            continue  # it looks for itself, and builds what can be built without GPUs
        fault = _missing(loaded, place(name))
        if fault:
            raise UserError(f"{loaded.name} cannot run {name} here: {fault}\n{ELSEWHERE}")
        [found] = planning.needs(
            loaded,
            [name],
            place,
            manifests=manifests,
            measured=measured,
            identities=identities,
            machine=machine,
        )
        said = planning.refusal(loaded, found)
        if said and (found.fault is not None or not reason):
            raise UserError("\n".join([said, *_advice(found)]))
        kept[name] = {**found.record(), "override_reason": reason if said else None}
    for name in (stage for stage in READING if stage in stages):
        fault = _too_large(loaded, place(name), name)
        if fault and not reason:
            raise UserError(f"{loaded.name} cannot run {name} here: {fault}\n{ELSEWHERE}\n{OVERRIDE}")
        if fault:
            kept[name] = {"verdict": fault, "override_reason": reason}
    return kept


def _missing(loaded: LoadedRecipe, machine: Machine) -> str | None:
    """GPUs or machines that the recipe counts on and that are not there."""
    wanted = loaded.settings.launch
    if wanted.gpus and not machine.gpus:
        return (
            f"it is made for {wanted.gpus} GPU{'s' if wanted.gpus > 1 else ''} of "
            f"{wanted.gpu_memory_gb} GB, and there is {machine.words()}."
        )
    if wanted.nodes > machine.nodes and not machine.assigned:
        return (
            f"it is made for {wanted.nodes} machines (launch.nodes), which SITE=slurm can give a step, and there is "
            f"{machine.words()}."
        )
    return None


def _advice(found: Needs) -> list[str]:
    if found.fault is not None:
        return []
    return [OVERRIDE] if found.alternatives else [ELSEWHERE, OVERRIDE]


def _too_large(loaded: LoadedRecipe, machine: Machine, name: str) -> str | None:
    """Why there is no room for a model that a step only reads."""
    gpu_bytes = machine.gpus * machine.gpu_bytes if machine.gpus else 0.0
    held = reading(of_recipe(loaded.settings.model), name, gpu_bytes)
    for wanted, room, place in (
        (held.gpus, gpu_bytes, "on its GPUs"),
        (held.main, machine.main_bytes, "in main memory"),
    ):
        if wanted > room:
            return (
                f"it holds an estimated {wanted / GB:.0f} GB {place} (pipeline/plan/reading.py), and there are "
                f"{room / GB:.0f} GB."
            )
    return None
