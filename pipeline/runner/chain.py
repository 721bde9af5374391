"""Plan and run the steps of a recipe, in order, redoing only what has to be redone.

A step is *done* when an artifact of its identity is published (and, for a server, when
that server answers); otherwise it *resumes* where an interrupted attempt left work, or
*runs*.  The identity of a step rests on its parents' output digests, so a parent that
runs again and yields the same bytes costs nothing downstream.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import graph
from pipeline.errors import GateClosed, UserError
from pipeline.recipe import LoadedRecipe
from pipeline.runner import base, gate, inputs, owner, supply, tracked
from pipeline.runner.attempt import can_go_on
from pipeline.runner.digests import DigestMemory
from pipeline.runner.display import Display
from pipeline.runner.identity import SHORT, differences, digest_of, parts_of
from pipeline.runner.lease import attempt, lease, live_holder
from pipeline.runner.liveness import deployment_fault
from pipeline.runner.provenance import changes_since, machine, source_digest
from pipeline.runner.store import Artifact, Store, damage
from pipeline.runner.work import SERVER, Order, run_step
from pipeline.toolchains import Toolchain


@dataclass
class Planned:
    """A step with what is known of it before anything runs.

    ``state`` is ``done``, ``resume``, ``run`` or ``blocked`` (a gate is closed here or
    above); ``why`` says so in words.  ``parts`` and ``identity`` are None while a parent
    has yet to run.  ``advice`` tells what changed that bears no identity.
    """

    step: graph.Step
    state: str
    why: str
    parts: dict[str, Any] | None = None
    identity: str | None = None
    artifact: Artifact | None = None
    advice: list[str] = field(default_factory=list)


@dataclass
class Chain:
    """The steps of one loaded recipe, and where their artifacts are.

    ``strict``: an artifact made by other code or another toolchain lock does not count.
    ``verify``: read every input and artifact again instead of trusting sizes and times.
    ``wait``: wait for a step that another controller runs instead of refusing.
    """

    loaded: LoadedRecipe
    runs: Path
    steps: tuple[graph.Step, ...] = ()
    strict: bool = False
    verify: bool = False
    wait: bool = False
    store: Store = field(init=False)
    memory: DigestMemory = field(init=False)
    planned: dict[str, dict[str, Any]] = field(default_factory=dict)  # of the run: what was planned, by stage

    def __post_init__(self) -> None:
        recipe = self.loaded.settings
        self.store = Store(self.runs, self.loaded.name)
        owner.check(self.store.root, self.loaded.file)
        self.memory = DigestMemory(self.runs / ".digests.json", reread=self.verify)
        if not self.steps:
            engines = {name: getattr(recipe, name).engine for name in graph.MODELS}
            unused = graph.unused_inputs(recipe)
            self.steps = graph.resolve(recipe.stages, recipe.model.base is not None, engines, unused)

    # -- planning ----------------------------------------------------------------------

    def plan(self, target: str | None = None) -> list[Planned]:
        """What a run up to ``target`` (default: everything) would do; writes nothing."""
        planned: dict[str, Planned] = {}
        for step in graph.ancestors(self.steps, target) if target else self.steps:
            planned[step.name] = self._plan_step(step, planned)
        return list(planned.values())

    def _plan_step(self, step: graph.Step, before: dict[str, Planned]) -> Planned:
        shut = [name for _, name in step.parents if before[name].state == "blocked"]
        if shut:
            return Planned(step, "blocked", f"rests on {' and '.join(shut)}")
        waiting = [name for _, name in step.parents if before[name].state != "done"]
        artifacts = {n: p.artifact for n, p in before.items() if p.artifact and p.state == "done"}
        if waiting:
            return Planned(step, "run", self._why_in_part(step, artifacts, waiting))
        verdict = self._gate_verdict(step, artifacts)
        if verdict and not verdict.open:
            return Planned(step, "blocked", f"the gate is closed: {'; '.join(verdict.failures)}")
        return self._look_up(step, self.parts(step, artifacts))

    def _look_up(self, step: graph.Step, parts: dict[str, Any]) -> Planned:
        identity = digest_of(parts)
        artifact = self._published(step, parts)
        if step.stage.live:
            if artifact is None:
                return Planned(step, "run", self._why(step, parts), parts, identity)
            served = str(artifact.manifest["parents"]["export"]["identity"])
            fault = deployment_fault(self.store.server_record(), self.loaded.settings.deploy, served)
            if fault:
                return Planned(step, "run", fault, parts, identity, artifact)
        if artifact:
            advice = changes_since(artifact.manifest["made_by"], step.stage, Toolchain(step.stage.toolchain))
            return Planned(step, "done", artifact.manifest["headline"], parts, identity, artifact, advice)
        interrupted = (
            None if step.stage.live else attempt(self.store.stage_folder(step.name), identity[:SHORT])
        )
        if interrupted:
            holder = live_holder(interrupted)
            if holder:
                return Planned(step, "run", f"is being run by {holder}", parts, identity)
            left = can_go_on(interrupted)
            if left:
                return Planned(step, "resume", left, parts, identity)
        return Planned(step, "run", self._why(step, parts), parts, identity)

    def _published(self, step: graph.Step, parts: dict[str, Any]) -> Artifact | None:
        """The whole artifact that stands for these parts; the recipe's latest before any other.

        Under ``strict`` only one that the present code and toolchain lock made.
        """
        plain = {name: part for name, part in parts.items() if name != "code"}
        latest = self.store.latest(step.name)
        same = latest is not None and {**latest.manifest["parts"], "code": 0} == {**plain, "code": 0}
        found = [latest if same else None]
        if not step.stage.live:
            found += [self.store.find(step.name, digest_of(each)) for each in (plain, parts)]
        for artifact in found:
            if artifact is None or damage(artifact.path, deep=self.verify):
                continue
            made_by, toolchain = artifact.manifest["made_by"], Toolchain(step.stage.toolchain)
            if not (self.strict and changes_since(made_by, step.stage, toolchain)):
                return artifact
        return None

    def parts(self, step: graph.Step, artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
        """The parts of a step's identity, its parents being published."""
        digests = {role: each.digest for role, each in self.inputs(step).items()}
        parents = {
            name: artifacts[parent].output_digest for name, parent in step.parents if parent in artifacts
        }
        parts = parts_of(step, self.loaded.settings, parents, digests)
        if self.strict:
            lock = Toolchain(step.stage.toolchain).lock_digest()
            parts["code"] = {"source": source_digest(step.stage), "lock": lock}
        return parts

    def inputs(self, step: graph.Step) -> dict[str, inputs.Input]:
        """What the step reads from outside, by role."""
        recipe = self.loaded.settings
        found: dict[str, inputs.Input] = {}
        if step.stage.uses_documents:
            if recipe.model.chat_template is not None:
                file = base.template(recipe.model.chat_template)
                found["model.chat_template"] = inputs.Input(self.memory.digest(file), path=str(file))
            found |= inputs.documents(recipe.curate, Toolchain(step.stage.toolchain), self.memory)
        if step.stage.uses_base_model and recipe.model.base is not None:
            found |= inputs.base_model(recipe.model, self.memory)
            if step.stage.writes_card:
                found |= inputs.base_card(recipe.model)
        if step.stage.uses_adapters:
            found |= inputs.adapters(recipe.export, self.memory)
        return found

    def _why(self, step: graph.Step, parts: dict[str, Any]) -> str:
        """Why a step has to run, field by field."""
        place = self.store.place(step.name, digest_of(parts))
        if place.exists():
            return f"its artifact is damaged: {'; '.join(damage(place, deep=self.verify)[:3])}"
        latest = self.store.latest(step.name)
        if latest is None:
            return "nothing is there yet"
        changes = self._changes(parts, latest.manifest["parts"])
        if not changes and self.strict:
            toolchain = Toolchain(step.stage.toolchain)
            changes = changes_since(latest.manifest["made_by"], step.stage, toolchain)
        return "; ".join(changes) or "its artifact is gone"

    def _why_in_part(self, step: graph.Step, artifacts: dict[str, Artifact], waiting: list[str]) -> str:
        """As :meth:`_why`, while parents have yet to run: what is known to change, and whom it follows."""
        latest = self.store.latest(step.name)
        changes = []
        if latest:
            parts = self.parts(step, artifacts)
            changes = self._changes({**parts, "parents": {}}, {**latest.manifest["parts"], "parents": {}})
        return "; ".join([*changes, f"follows {', '.join(dict.fromkeys(waiting))}"])

    def _changes(self, parts: dict[str, Any], before: dict[str, Any]) -> list[str]:
        changes = []
        for change in differences(parts, before):
            key = change.split(":", 1)[0]
            origin = self.loaded.origin(key) if "->" in change and "." in key else None
            changes.append(f"{change}, from {origin}" if origin else change)
        return changes

    # -- running -----------------------------------------------------------------------

    def _afford(self, target: str | None, names: list[str] | None) -> dict[str, dict[str, Any]]:
        """Refuse what this machine has not the means for; returns what was planned for each step that is to train.

        Of all steps up to ``target``, where an input that is missing keeps one from knowing which would run.
        """
        try:
            planned = self.plan(target)
        except (UserError, OSError):  # told by the check of the inputs
            planned = [Planned(step, "run", "") for step in self.steps]
        todo = [each for each in planned if each.state in ("run", "resume")]
        wanted = [each.step.name for each in todo if names is None or each.step.name in names]
        if not {*graph.TRAINING, *graph.READING}.intersection(wanted):
            return {}
        from pipeline.plan import site  # a run that does nothing starts at once

        return site.check(self.loaded, wanted, **self.known(planned))

    def known(self, planned: list[Planned]) -> dict[str, Any]:
        """What a plan of needs can use of this chain: token counts of earlier runs, and calibrations."""
        from pipeline.plan import calibrate

        latest = {each.step.name: self.store.latest(each.step.name) for each in planned}
        return {
            "manifests": {name: artifact.manifest for name, artifact in latest.items() if artifact},
            "measured": calibrate.read(self.store.root),
            "identities": {each.step.name: each.identity for each in planned if each.identity},
            "machine": calibrate.machine_words(machine()),
        }

    def run(self, display: Display, target: str | None = None, only: bool = False) -> list[Planned]:
        """Bring every step up to ``target`` up to date; returns what each one is now.

        ``only``: no step but ``target`` may run; :class:`UserError` where one would have to.
        Raises :class:`LifecycleError` of the kind that says how it ended; what was
        finished before stays published.
        """
        steps = graph.ancestors(self.steps, target) if target else self.steps
        for name in sorted({step.stage.toolchain for step in (steps[-1:] if only else steps)}):
            Toolchain(name).require()
        tracked.require(self.loaded.settings.tracking)
        self.planned = self._afford(target, [steps[-1].name] if only else None)
        inputs.check_inputs(self.loaded)
        owner.claim(self.store.root, self.loaded)
        finished: dict[str, Planned] = {}
        try:
            for step in steps:
                artifacts = {name: p.artifact for name, p in finished.items() if p.artifact}
                verdict = self._gate_verdict(step, artifacts)
                if verdict and not verdict.open:
                    raise GateClosed(_closed(verdict))
                planned = self._look_up(step, self.parts(step, artifacts))
                if planned.state == "done":
                    finished[step.name] = self._skip(planned, display)
                    continue
                if only and step.name != target:
                    raise UserError(
                        f"{target} rests on {step.name}, which would have to run first ({planned.why}); --only "
                        "runs nothing else"
                    )
                if all(each.state == "done" for each in finished.values()):
                    self._check_disk()
                self._check_supply([step.name] if only else [each.name for each in steps], finished)
                finished[step.name] = self._run_step(planned, artifacts, verdict, display)
        finally:
            self.memory.save()
        return list(finished.values())

    def _check_supply(self, names: list[str], finished: dict[str, Planned]) -> None:
        """Refuse, before the first step after curation, a recipe whose later steps would find no data."""
        curated = finished.get("curate")
        if curated is None or curated.artifact is None:
            return
        wanted = [name for name in names if name not in finished]
        faults = list(supply.lacking(self.loaded.settings, wanted, curated.artifact.manifest["metrics"]))
        if faults:
            raise UserError("\n".join(faults))

    def serve(self, display: Display, export: Artifact, why: str) -> Planned:
        """Deploy this export in the place of what is served.  Raises :class:`LifecycleError` of the kind of the failure."""
        step = next((each for each in self.steps if each.stage.live), None)
        if step is None:
            raise UserError(f"the recipe {self.loaded.name} has no stage that deploys")
        Toolchain(step.stage.toolchain).require()
        artifacts = {parent: export for _, parent in step.parents}
        parts = self.parts(step, artifacts)
        return self._run_step(Planned(step, "run", why, parts, digest_of(parts)), artifacts, None, display)

    def _run_step(
        self,
        planned: Planned,
        artifacts: dict[str, Artifact],
        verdict: gate.Verdict | None,
        display: Display,
    ) -> Planned:
        step, identity = planned.step, str(planned.identity)
        site = self.loaded.settings.site
        with lease(
            self.store.stage_folder(step.name),
            SERVER if step.stage.live else identity[:SHORT],
            f"{self.loaded.name}/{step.name}",
            lease_s=site.lease_s,
            wait=self.wait,
            tell=lambda text: display.line("", text),
        ) as held:
            again = self._look_up(step, planned.parts or {})
            if again.state == "done":  # another controller finished it while this one waited
                shutil.rmtree(held.folder, ignore_errors=True)
                return self._skip(again, display)
            parts = planned.parts or {}
            order = Order(
                step=step,
                parts=parts,
                # Known only now that nobody else is at work on it.
                why=planned.why if step.stage.live else can_go_on(held.folder) or self._why(step, parts),
                artifacts=artifacts,
                verdict=verdict,
                loaded=self.loaded,
                store=self.store,
                read=lambda: self.inputs(step),
                strict=self.strict,
                planned=self.planned.get(step.name),
            )
            artifact, headline = run_step(order, held, display)
        return Planned(step, "ran", headline, planned.parts, artifact.identity, artifact)

    def _skip(self, planned: Planned, display: Display) -> Planned:
        assert planned.artifact is not None
        self.store.point_latest(planned.step.name, planned.artifact.path.name)
        display.skip(planned.step.name, ", ".join([planned.why, *(f"({a})" for a in planned.advice)]))
        return planned

    def _gate_verdict(self, step: graph.Step, artifacts: Mapping[str, Artifact]) -> gate.Verdict | None:
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
