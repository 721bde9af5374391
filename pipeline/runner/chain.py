"""Plan and run the steps of a recipe, in order, redoing only what has to be redone.

A step is *done* when an artifact of its identity is published (and, for a server, when
that server answers); otherwise it *resumes* where an interrupted attempt left work, or
*runs*.  The identity of a step rests on its parents' output digests, so a parent that
runs again and yields the same bytes costs nothing downstream.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import graph
from pipeline.errors import GateClosed, LifecycleError, UserError
from pipeline.recipe import LoadedRecipe
from pipeline.runner import gate, inputs
from pipeline.runner.digests import DigestMemory
from pipeline.runner.display import Display
from pipeline.runner.execute import Outcome, execute
from pipeline.runner.identity import differences, digest_of, parts_of
from pipeline.runner.lease import lease
from pipeline.runner.liveness import deployment_fault
from pipeline.runner.provenance import provenance
from pipeline.runner.store import Artifact, Store
from pipeline.runner.threads import thread_count
from pipeline.toolchains import Toolchain


@dataclass
class Planned:
    """A step with what is known of it before anything runs.

    ``state`` is ``done``, ``resume``, ``run`` or ``blocked`` (a gate is closed);
    ``parts`` and ``identity`` are None while a parent has yet to run.
    """

    step: graph.Step
    state: str
    why: str
    parts: dict[str, Any] | None = None
    identity: str | None = None
    artifact: Artifact | None = None


@dataclass
class Chain:
    """The steps of one loaded recipe, and where their artifacts are."""

    loaded: LoadedRecipe
    runs: Path
    steps: tuple[graph.Step, ...] = ()
    store: Store = field(init=False)
    memory: DigestMemory = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.loaded.settings
        self.store = Store(self.runs, self.loaded.name)
        self.memory = DigestMemory(self.runs / ".digests.json")
        if not self.steps:
            self.steps = graph.resolve(recipe.stages, recipe.model.base is not None)

    # -- planning ----------------------------------------------------------------------

    def plan(self, target: str | None = None) -> list[Planned]:
        """What a run up to ``target`` (default: everything) would do; writes nothing."""
        planned: dict[str, Planned] = {}
        for step in graph.ancestors(self.steps, target) if target else self.steps:
            planned[step.name] = self._plan_step(step, planned)
        return list(planned.values())

    def _plan_step(self, step: graph.Step, before: dict[str, Planned]) -> Planned:
        waiting = [name for _, name in step.parents if before[name].state != "done"]
        if waiting:
            return Planned(step, "run", f"{' and '.join(waiting)} will run first")
        blocked = self._gate_verdict(step, {n: p.artifact for n, p in before.items()})
        if blocked and not blocked.open:
            return Planned(step, "blocked", f"the gate is closed: {'; '.join(blocked.failures)}")
        artifacts = {n: p.artifact for n, p in before.items() if p.artifact}
        parts = self.parts(step, artifacts)
        return self._look_up(step, parts)

    def _look_up(self, step: graph.Step, parts: dict[str, Any]) -> Planned:
        identity = digest_of(parts)
        latest = self.store.latest(step.name)
        if step.stage.live:
            if latest is None or latest.manifest["parts"] != parts:
                return Planned(step, "run", self._why(parts, latest), parts, identity)
            served = str(latest.manifest["parents"]["export"]["identity"])
            fault = deployment_fault(self.store.server_record(), self.loaded.settings.deploy, served)
            state, why = ("run", fault) if fault else ("done", latest.manifest["headline"])
            return Planned(step, state, why, parts, identity, latest)
        artifact = self.store.find(step.name, identity)
        if artifact:
            return Planned(step, "done", artifact.manifest["headline"], parts, identity, artifact)
        if (self.store.work_folder(step.name, identity) / "job.json").exists():
            return Planned(step, "resume", "an interrupted attempt goes on", parts, identity)
        return Planned(step, "run", self._why(parts, latest), parts, identity)

    def parts(self, step: graph.Step, artifacts: dict[str, Artifact]) -> dict[str, Any]:
        """The parts of a step's identity, its parents being published."""
        recipe = self.loaded.settings
        digests: dict[str, str] = {}
        if step.stage.uses_documents:
            digests |= inputs.document_digests(recipe.curate, Toolchain(step.stage.toolchain), self.memory)
        if step.stage.uses_base_model and recipe.model.base is not None:
            digests |= inputs.base_model_digests(Path(recipe.model.base), self.memory)
        parents = {input_name: artifacts[name].output_digest for input_name, name in step.parents}
        return parts_of(step, recipe, parents, digests)

    def _why(self, parts: dict[str, Any], latest: Artifact | None) -> str:
        if latest is None:
            return "nothing is there yet"
        changes = []
        for change in differences(parts, latest.manifest["parts"]):
            key = change.split(":", 1)[0]
            origin = self.loaded.origin(key) if "->" in change and "." in key else None
            changes.append(f"{change} (from {origin})" if origin else change)
        return "; ".join(changes) or "its artifact is gone"

    # -- running -----------------------------------------------------------------------

    def run(self, display: Display, target: str | None = None) -> list[Planned]:
        """Bring every step up to ``target`` up to date; returns what each one is now.

        Raises :class:`UserError`, :class:`StepFailed`, :class:`GateClosed` or
        :class:`Interrupted`; what was finished before stays published.
        """
        steps = graph.ancestors(self.steps, target) if target else self.steps
        for name in sorted({step.stage.toolchain for step in steps}):
            Toolchain(name).require()
        inputs.check_inputs(self.loaded)
        finished: dict[str, Planned] = {}
        checked_disk = False
        for step in steps:
            artifacts = {name: p.artifact for name, p in finished.items() if p.artifact}
            verdict = self._gate_verdict(step, artifacts)
            if verdict and not verdict.open:
                raise GateClosed(_closed(verdict))
            planned = self._look_up(step, self.parts(step, artifacts))
            if planned.state == "done":
                self.store.point_latest(step.name, planned.artifact.path.name)  # type: ignore[union-attr]
                display.skip(step.name, planned.why)
                finished[step.name] = planned
                continue
            if not checked_disk:
                self._check_disk()
                checked_disk = True
            with lease(self.store.stage_folder(step.name), f"{self.loaded.name}/{step.name}") as held:
                finished[step.name] = self._run_step(planned, artifacts, verdict, display, held)
        self.memory.save()
        return list(finished.values())

    def _run_step(
        self,
        planned: Planned,
        artifacts: dict[str, Artifact],
        verdict: gate.Verdict | None,
        display: Display,
        held: int,
    ) -> Planned:
        step, parts = planned.step, planned.parts
        assert parts is not None
        if step.stage.live:
            # Every start of a server is an artifact of its own; nothing of a start resumes.
            shutil.rmtree(self.store.stage_folder(step.name) / ".work", ignore_errors=True)
            identity = digest_of({**parts, "started": str(time.time_ns())})
        else:
            identity = digest_of(parts)
            artifact = self.store.find(step.name, identity)
            if artifact:  # another controller finished it while we waited for the lease
                return Planned(step, "done", artifact.manifest["headline"], parts, identity, artifact)
        display.start(step.name, planned.why)
        job = self._job(step, identity, artifacts)
        started = time.time()
        toolchain = Toolchain(step.stage.toolchain)
        try:
            outcome = execute(job, toolchain, display, held)
            self._check_produced(step, Path(job["work"]))
            manifest = self._manifest(step, identity, parts, artifacts, started, outcome, toolchain)
            if verdict:
                manifest["gate"] = verdict.record()
            artifact = self.store.publish(step.name, identity, manifest)
        except BaseException:
            display.fail()
            raise
        display.end(outcome.headline, outcome.seconds)
        return Planned(step, "ran", outcome.headline, parts, identity, artifact)

    def _job(self, step: graph.Step, identity: str, artifacts: dict[str, Artifact]) -> dict[str, Any]:
        recipe = self.loaded.settings
        sections = dict.fromkeys(section.split(".")[0] for section in step.stage.sections)
        settings = {section: asdict(getattr(recipe, section)) for section in sections}
        for source in settings.get("curate", {}).get("sources", []):
            source["path"] = _absolute(source["path"])
        for name in ("instructions", "preferences"):
            if name in settings.get("curate", {}):
                settings["curate"][name] = _absolute(settings["curate"][name])
        base = _absolute(recipe.model.base) if step.stage.uses_base_model else None
        if "model" in settings:
            settings["model"]["base"] = _absolute(recipe.model.base)
        return {
            "stage": step.name,
            "recipe": self.loaded.name,
            "identity": identity,
            "settings": settings,
            "inputs": {name: str(artifacts[parent].path.resolve()) for name, parent in step.parents},
            "base_model": base,
            "work": str(self.store.work_folder(step.name, identity).resolve()),
            "threads": thread_count(recipe.site.threads),
            "extra": {"server_record": str(self.store.server_record().resolve())} if step.stage.live else {},
        }

    def _check_produced(self, step: graph.Step, work: Path) -> None:
        missing = [name for name in step.stage.produces if not (work / "output" / name).exists()]
        if missing:
            raise LifecycleError(f"{step.name} ended without {', '.join(missing)}; nothing was published")

    def _manifest(
        self,
        step: graph.Step,
        identity: str,
        parts: dict[str, Any],
        artifacts: dict[str, Artifact],
        started: float,
        outcome: Outcome,
        toolchain: Toolchain,
    ) -> dict[str, Any]:
        return {
            "format": 1,
            "recipe": self.loaded.name,
            "stage": step.name,
            "identity": identity,
            "parts": parts,
            "parents": {
                name: {
                    "stage": parent,
                    "identity": artifacts[parent].identity,
                    "path": artifacts[parent].path.name,
                }
                for name, parent in step.parents
            },
            "metrics": outcome.metrics,
            "headline": outcome.headline,
            "warnings": outcome.warnings,
            "messages": outcome.messages,
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(outcome.seconds, 1),
            "peak_memory_gb": round(outcome.peak_memory_gb, 2),
            "made_by": provenance(toolchain),
        }

    def _gate_verdict(self, step: graph.Step, artifacts: dict[str, Any]) -> gate.Verdict | None:
        judged, guarded = graph.GATE
        if step.name != guarded or artifacts.get(judged) is None:
            return None
        return gate.judge(artifacts[judged].manifest["metrics"], self.loaded.settings.gate)

    def _check_disk(self) -> None:
        self.runs.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.runs).free / 1e9
        needed = self.loaded.settings.site.min_free_gb
        if free < needed:
            raise UserError(
                f"{self.loaded.origin('site.min_free_gb')}: too little disk: {free:.1f} GB are free in "
                f"{self.runs}, site.min_free_gb asks for {needed:g} GB; free some, or put the runs elsewhere "
                "(--runs FOLDER, or LIFECYCLE_RUNS)"
            )


def _closed(verdict: gate.Verdict) -> str:
    failures = "\n".join(f"  - {failure}" for failure in verdict.failures)
    return (
        f"the gate between {graph.GATE[0]} and {graph.GATE[1]} is closed:\n{failures}\n"
        "Train or align differently, widen the tolerance in the recipe's gate section, or go on all the same "
        "with a reason that is recorded:\n"
        "  SET='gate.override_reason=\"why this is fine\"'"
    )


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).resolve())
