"""Run one step under its lease and publish what it made, with the record of how."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import graph
from pipeline.curation import path_settings
from pipeline.documents import is_remote
from pipeline.errors import Damaged, LifecycleError, UserError
from pipeline.recipe import LoadedRecipe
from pipeline.runner import base as bases
from pipeline.runner import gate
from pipeline.runner.attempt import curves, note_attempt, read_attempts, spent, take_up
from pipeline.runner.base_record import describe
from pipeline.runner.display import Display
from pipeline.runner.execute import Outcome, execute
from pipeline.runner.identity import digest_of
from pipeline.runner.inputs import Input
from pipeline.runner.lease import Lease
from pipeline.runner.provenance import changes_since, provenance
from pipeline.runner.store import Artifact, Store, damage, read_artifact
from pipeline.runner.tracked import tracked
from pipeline.threads import thread_count
from pipeline.toolchains import Toolchain

SERVER = "server"  # the lease of a live stage: one server a recipe, whatever its settings


@dataclass(frozen=True)
class Order:
    """A step that has to run, and all that running it takes.

    ``why`` is shown; ``artifacts`` are the parents', by stage; ``read`` gives what the
    step reads from outside, as it is now; under ``strict`` work that other code left is
    not gone on from.  ``planned`` is what it was expected to need (:mod:`pipeline.plan.needs`).
    """

    step: graph.Step
    parts: dict[str, Any]
    why: str
    artifacts: dict[str, Artifact]
    verdict: gate.Verdict | None
    loaded: LoadedRecipe
    store: Store
    read: Callable[[], dict[str, Input]]
    strict: bool = False
    planned: dict[str, Any] | None = None


def run_step(order: Order, held: Lease, display: Display) -> tuple[Artifact, str]:
    """Run the step in the lease's folder; returns its artifact and headline.

    Raises :class:`Damaged` before anything starts when a parent's artifact has rotted.
    """
    step, store, site = order.step, order.store, order.loaded.settings.site
    _check_parents(order)
    toolchain = Toolchain(step.stage.toolchain)
    made_by = provenance(step.stage, toolchain)
    identity = digest_of(order.parts)
    if step.stage.live:
        # Every start of a server is an artifact of its own; nothing of a start resumes.
        identity = digest_of({**order.parts, "started": str(time.time_ns())})
    take_up(held.folder, made_by, order.strict, store.quarantine, lambda text: display.note(step.name, text))
    note_attempt(held.folder, made_by)
    display.start(step.name, order.why)
    started = time.time()
    try:
        job, unheard = job_of(order, identity, held, toolchain), list[str]()
        try:
            with tracked(job, order.loaded.settings.tracking, store.tracking_folder(), unheard.append):
                outcome = execute(job, toolchain, display, held, site.grace_s)
        finally:
            for text in unheard:
                display.note(step.name, text)
        outcome.warnings += unheard
        _check_produced(step, held.folder)
        read = {role: each.record() for role, each in order.read().items()}
        _check_inputs_unchanged(step, order.parts, read)
        record = {
            "recipe": order.loaded.name,
            "description": order.loaded.settings.description,
            "stage": step.name,
            "identity": identity,
            "parts": order.parts,
            "parents": _parents(order),
            "inputs": read,
            **_measured(outcome, *spent(held.folder)),
            "curves": curves(held.folder),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "made_by": made_by,
            "attempts": read_attempts(held.folder),
            **({"base": base} if (base := _base(order)) else {}),
            **({"gate": order.verdict.record()} if order.verdict else {}),
            **({"plan": order.planned} if order.planned else {}),
        }
        artifact = store.publish(held, step.name, identity, record)
    except BaseException:
        display.fail()
        raise
    display.end(outcome.headline, outcome.seconds)
    return artifact, outcome.headline


def _check_parents(order: Order) -> None:
    """Read every byte that the step is about to rest on."""
    for _, parent in order.step.parents:
        artifact = order.artifacts[parent]
        faults = damage(artifact.path, deep=True)
        if faults:
            listed = "\n".join(f"  - {fault}" for fault in faults[:10])
            raise Damaged(
                f"{order.step.name} would rest on {artifact.path}, which is not what {parent} published:\n{listed}\n"
                f"Nothing was started. `lifecycle verify {order.loaded.name} --quarantine` moves it aside, and "
                "the next run makes it anew"
            )


def job_of(order: Order, identity: str, held: Lease, toolchain: Toolchain) -> dict[str, Any]:
    """What the step's process is told: settings, paths, threads."""
    step, recipe = order.step, order.loaded.settings
    sections = dict.fromkeys(section.split(".")[0] for section in step.stage.sections)
    settings = {section: asdict(getattr(recipe, section)) for section in (*sections, "launch")}
    for source in settings.get("curate", {}).get("sources", []):
        source["path"] = _absolute(source["path"])
    if "curate" in settings:
        for _, holder, key in path_settings(settings["curate"]):
            holder[key] = _absolute(holder[key])
    if "deploy" in settings:
        deploy = settings["deploy"]
        deploy |= {name: _absolute(deploy[name]) for name in ("keys_file", "tls_certificate", "tls_key")}
    if "export" in settings:
        adapters = settings["export"]["adapters"]
        settings["export"]["adapters"] = {name: _absolute(str(path)) for name, path in adapters.items()}
    given = bases.folder(recipe.model) if recipe.model.base is not None else None
    base = str(given.resolve()) if given and step.stage.uses_base_model else None
    if "model" in settings:
        settings["model"]["base"] = base
        name = recipe.model.chat_template
        settings["model"]["chat_template"] = None if name is None else str(bases.template(name).resolve())
    extra: dict[str, Any] = {"ray": recipe.site.ray} if step.stage.uses_documents else {}
    if described := _base(order):
        extra["base"] = described
    if step.stage.live:
        extra["server_record"] = str(order.store.server_record().resolve())
    return {
        "stage": step.name,
        "module": step.stage.source,
        "recipe": order.loaded.name,
        "identity": identity,
        "settings": settings,
        "inputs": {name: str(order.artifacts[parent].path.resolve()) for name, parent in step.parents},
        "base_model": base,
        "work": str(held.folder.resolve()),
        "threads": thread_count(recipe.site.threads),
        "grace_s": recipe.site.grace_s,
        "earlier": [str(path) for path in _alike(order, toolchain)],
        "extra": extra,
    }


def _base(order: Order) -> dict[str, Any] | None:
    """What the base is that the step's model comes from, for the record and the model card."""
    return describe(order.loaded.settings.model) if order.step.stage.uses_base_model else None


def _alike(order: Order, toolchain: Toolchain) -> list[Path]:
    """The stage's earlier artifacts in this recipe that this very code and toolchain made."""
    stage = order.step.stage
    artifacts = (read_artifact(path) for path in order.store.artifacts(order.step.name))
    return [
        each.path.resolve()
        for each in artifacts
        if each is not None
        and each.manifest["parts"]["stage"] == order.parts["stage"]
        and not changes_since(each.manifest["made_by"], stage, toolchain)
    ]


def _check_produced(step: graph.Step, work: Path) -> None:
    missing = [name for name in step.stage.produces if not (work / "output" / name).exists()]
    if missing:
        raise LifecycleError(f"{step.name} ended without {', '.join(missing)}; nothing was published")


def _check_inputs_unchanged(step: graph.Step, parts: dict[str, Any], read: dict[str, Any]) -> None:
    """Refuse to publish under the digests of files that were written while the step read them."""
    now = {role: each["digest"] for role, each in read.items()}
    changed = sorted(
        role for role in parts["inputs"].keys() | now if parts["inputs"].get(role) != now.get(role)
    )
    if changed:
        raise UserError(
            f"{step.name}: input {', '.join(changed)} changed while the step was reading it; nothing was "
            "published: run again when it is complete"
        )


def _parents(order: Order) -> dict[str, Any]:
    artifacts = order.artifacts
    return {
        name: {
            "stage": parent,
            "identity": artifacts[parent].identity,
            "path": artifacts[parent].path.name,
            "output_digest": artifacts[parent].output_digest,
        }
        for name, parent in order.step.parents
    }


def _measured(outcome: Outcome, seconds_before: float, peak_before: float) -> dict[str, Any]:
    """The figures of a step: of its last attempt, and the time and memory of all of them."""
    return {
        "metrics": outcome.metrics,
        "headline": outcome.headline,
        "warnings": outcome.warnings,
        "messages": outcome.messages,
        "seconds": round(outcome.seconds + seconds_before, 1),
        "peak_memory_gb": round(max(outcome.peak_memory_gb, peak_before), 2),
    }


def _absolute(path: str | None) -> str | None:
    return path if path is None or is_remote(path) else str(Path(path).resolve())
