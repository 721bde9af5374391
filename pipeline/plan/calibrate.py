"""Two real steps of each training stage, timed where the recipe stands: ``lifecycle plan RECIPE --calibrate``.

A stage is run as it would be, on its own examples and in as many processes, and ended after its third step (the first
warms up).  Nothing is published.  What was measured is kept in ``runs/RECIPE/calibration.json`` under the identity of
the step and the machine, and counts for that very step on that machine: change a setting, and it is to be measured again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import LifecycleError
from pipeline.graph import TRAINING
from pipeline.plan.quantity import Quantity, given
from pipeline.stages.step import write_json
from pipeline.wording import counted

if TYPE_CHECKING:
    from pipeline.runner.chain import Chain, Planned
    from pipeline.runner.display import Display

STEPS = 2
FILE = "calibration.json"


@dataclass(frozen=True)
class Measured:
    """What a calibration found: seconds of an optimiser step, and what comes once or with each look at the validation.

    ``tokens`` and ``run_tokens``: of a measured step, and of the whole run; steps with more tokens take longer.
    """

    identity: str
    machine: str
    date: str
    processes: int
    steps: int
    step_s: float
    tokens: float
    max_steps: int
    run_tokens: float
    setup_s: float
    validation_s: float
    peak_memory_gb: float

    def run(self, looks: int) -> Quantity:
        """Seconds of the whole run with so many looks at the validation loss."""
        source = f"measured on {self.date}, {self.steps} steps on {self.machine}"
        rate = Quantity(
            "throughput",
            self.tokens / self.step_s,
            "token/s",
            "tokens of a step / seconds of a step",
            (
                given("tokens of a step", self.tokens, "token", source),
                given("seconds of a step", self.step_s, "s", source),
            ),
        )
        tokens = given("tokens of the run", self.run_tokens, "token", "its examples, counted")
        setup = given("set-up", self.setup_s, "s", source)
        look = given("one look at the validation loss", self.validation_s, "s", source)
        return Quantity(
            "time",
            self.setup_s + self.run_tokens / rate.value + looks * self.validation_s,
            "s",
            "set-up + tokens of the run / throughput + looks x one look",
            (setup, tokens, rate, given("looks", looks), look),
            source,
        )


def read(root: Path) -> dict[str, Measured]:
    """What was measured for a recipe's steps, by stage; nothing where the file is missing or another version's."""
    try:
        plain = json.loads((root / FILE).read_text(encoding="utf-8"))
        return {stage: Measured(**figures) for stage, figures in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def machine_words(machine: dict[str, Any]) -> str:
    """A machine as a manifest has it, in words that tell it from others."""
    return f"{counted(machine['cores'], 'core')} of {machine['processor']} ({machine['host']})"


def calibrate(chain: Chain, display: Display) -> dict[str, Measured]:
    """Measure every training step of AutoModel's whose parents are there; returns and keeps what was found.

    Raises :class:`LifecycleError` of the kind of a step's failure, and :class:`UserError` where a toolchain is missing or a
    step does not fit here.
    """
    from pipeline.plan import site

    found = read(chain.store.root)
    planned = {each.step.name: each for each in chain.plan()}
    site.check(chain.loaded, [name for name in TRAINING if name in planned])
    for name in (stage for stage in TRAINING if stage in planned):
        settings = getattr(chain.loaded.settings, name)
        if getattr(settings, "engine", "automodel") != "automodel":
            display.note(name, "not measured: its engine runs on GPUs, in its own container")
            continue
        waiting = [parent for _, parent in planned[name].step.parents if planned[parent].state != "done"]
        if waiting:
            display.note(name, f"not measured: {', '.join(waiting)} has to run first")
            continue
        found[name] = _measure(chain, planned[name], display)
        write_json(chain.store.root / FILE, {stage: asdict(figures) for stage, figures in found.items()})
    return found


def _measure(chain: Chain, planned: Planned, display: Display) -> Measured:
    from pipeline.runner.execute import execute
    from pipeline.runner.lease import lease
    from pipeline.runner.provenance import provenance
    from pipeline.runner.work import Order, job_of
    from pipeline.toolchains import Toolchain

    step, site = planned.step, chain.loaded.settings.site
    toolchain = Toolchain(step.stage.toolchain)
    toolchain.require()
    artifacts = {
        parent: artifact
        for _, parent in step.parents
        if (artifact := next(p.artifact for p in chain.plan(parent) if p.step.name == parent)) is not None
    }
    parts, identity = planned.parts or {}, str(planned.identity)
    order = Order(step, parts, "", artifacts, None, chain.loaded, chain.store, lambda: chain.inputs(step))
    tell: Callable[[str], None] = lambda text: display.line("", text)  # noqa: E731
    folder, what = chain.store.root / ".calibration", f"{chain.loaded.name}/{step.name} (calibration)"
    with lease(folder, step.name, what, lease_s=site.lease_s, tell=tell) as held:
        for each in ("output", "state"):  # of a calibration that was killed
            shutil.rmtree(held.folder / each, ignore_errors=True)
        display.start(step.name, f"{STEPS} steps are timed; nothing is published")
        job = job_of(order, identity, held, toolchain)
        job["extra"]["calibrate"] = STEPS
        began = time.time()
        try:
            outcome = execute(job, toolchain, display, held, site.grace_s)
        except BaseException:
            display.fail()
            raise
        figures = outcome.metrics
        if "first_step_ended" not in figures:
            raise LifecycleError(f"{step.name} has fewer than {STEPS + 1} steps: there is nothing to time")
        step_s = figures["seconds"] / figures["steps"]
        display.end(f"{step_s:.3g} s a step", outcome.seconds)
    shutil.rmtree(folder, ignore_errors=True)
    return Measured(
        identity=identity,
        machine=machine_words(provenance(step.stage, toolchain)["machine"]),
        date=time.strftime("%Y-%m-%d"),
        processes=figures["processes"],
        steps=figures["steps"],
        step_s=step_s,
        tokens=figures["tokens"] / figures["steps"],
        max_steps=figures["max_steps"],
        run_tokens=figures["run_tokens"],
        setup_s=max(0.0, figures["first_step_ended"] - began - step_s),
        validation_s=figures["validation_s"],
        peak_memory_gb=round(outcome.peak_memory_gb, 2),
    )
