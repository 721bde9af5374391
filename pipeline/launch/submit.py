"""The controller's side of submitting: what is to do, pinned as it is now, and handed over."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import graph, schema
from pipeline import recipe as recipes
from pipeline.errors import GateClosed, UserError
from pipeline.launch.handover import TOOLCHAIN, hand_over
from pipeline.launch.orders import (
    ENDS,
    JOBS,
    PINNED,
    SITE_FILE,
    Job,
    Order,
    StepOrder,
    read_jobs,
    submissions,
)
from pipeline.launch.status import at_work
from pipeline.plan.place import ask_for_gpus
from pipeline.plan.site import check as check_site
from pipeline.recipe import SUBMITTED, LoadedRecipe
from pipeline.runner import inputs, owner, tracked
from pipeline.runner.chain import Chain
from pipeline.toolchains import ROOT, Toolchain

MODULE = "pipeline"  # what a job runs with python -m
LOCAL_SETTINGS = {"name", "kind", "slurm", "kubernetes", "secrets"}


@dataclass(frozen=True)
class Submitted:
    """What was sent, or would be: the jobs, where they are written down, and what was left out."""

    folder: Path
    jobs: list[Job]
    notes: list[str]


def submit(chain: Chain, target: str | None, dry: bool, options: list[str]) -> Submitted:
    """Send the steps up to ``target`` (default: all) that have to run, as jobs of the recipe's site.

    ``dry``: only write what would be sent, and leave nothing behind.  ``options`` are passed
    on to the controller of each job.  Raises :class:`UserError` where a chain of the recipe is
    in the queue already, or the cluster refuses.
    """
    Toolchain(TOOLCHAIN).require()
    if chain.loaded.settings.site.kind == "slurm" and not dry:
        inputs.check_inputs(chain.loaded)
    machine = ask_for_gpus(chain.loaded.settings)
    steps, notes = _to_do(chain, target)
    check_site(chain.loaded, [step.name for step in steps], machine)
    if not steps:
        return Submitted(chain.store.root, [], notes)
    _check_secrets(chain.loaded.settings.site)
    if not dry:
        busy = at_work(chain.store.root)
        if busy:
            raise UserError(
                f"{chain.store.recipe} is in the queue already: {', '.join(busy)}; `lifecycle status` shows it, "
                "`lifecycle cancel` takes it back"
            )
        owner.check(chain.store.root, chain.loaded.file)
    with _folder(chain.store.root, dry) as folder:
        order = _order(chain, steps, folder, options)
        order.write(folder)
        hand_over("dry" if dry else "send", folder)
        if not dry:
            owner.claim(chain.store.root, chain.loaded)
        return Submitted(folder, read_jobs(folder), notes)


def _to_do(chain: Chain, target: str | None) -> tuple[list[graph.Step], list[str]]:
    """The steps that become jobs, and what to say about the others.

    A Kubernetes site keeps its runs on a volume that this machine does not see, so there
    every step is sent; those that are done are found so in no time.
    """
    site = chain.loaded.settings.site
    steps = graph.ancestors(chain.steps, target) if target else chain.steps
    if target and steps[-1].stage.live:
        raise UserError(
            f"{target} starts a server, which would end with its job: run it on the machine that is to serve, "
            f"`lifecycle {target} {chain.store.recipe} --runs {chain.runs}` (SITE=local); --dry-run writes what Helm, "
            f"compose and Slurm take for GPUs elsewhere (docs/deploying.md)"
        )
    notes = [f"{step.name}: left out, a server would end with its job" for step in steps if step.stage.live]
    steps = tuple(step for step in steps if not step.stage.live)
    if site.kind == "kubernetes":
        return list(steps), notes
    if not site.slurm.container_image:
        for name in sorted({step.stage.toolchain for step in steps}):
            Toolchain(name).require()
        tracked.require(chain.loaded.settings.tracking)
    wanted = {step.name for step in steps}
    todo = []
    for planned in chain.plan():
        if planned.step.name not in wanted:
            continue
        if planned.state == "blocked":
            raise GateClosed(f"{planned.step.name}: {planned.why}; nothing was submitted")
        if planned.state == "done":
            notes.append(f"{planned.step.name}: up to date, {planned.why}")
        else:
            todo.append(planned.step)
    return todo, notes


def _order(chain: Chain, steps: list[graph.Step], folder: Path, options: list[str]) -> Order:
    loaded, site = chain.loaded, chain.loaded.settings.site
    names = {step.name for step in steps}
    recipe, pinned_site = _pin(loaded, folder)
    environment: dict[str, str] = {}
    files: dict[str, str] = {}
    if site.kind == "slurm":
        cwd, runs = str(Path.cwd()), str(chain.runs.resolve())
        python = site.slurm.python or sys.executable
        environment["PYTHONPATH"] = str(ROOT)
        # NeMo-Run asks srun for unbuffered output, which makes a log look like a terminal.
        environment["TTY_COMPATIBLE"] = "0"
        if site.slurm.container_image:  # has environments of its own
            python = site.slurm.python or f"{site.slurm.root}/.venvs/controller/bin/python"
            environment["PYTHONPATH"] = site.slurm.root
        elif os.environ.get("LIFECYCLE_VENVS"):
            environment["LIFECYCLE_VENVS"] = str(Path(os.environ["LIFECYCLE_VENVS"]).resolve())
    else:
        cluster = site.kubernetes
        cwd, runs, python = cluster.mount, f"{cluster.mount}/runs", cluster.python
        environment["PYTHONPATH"] = cluster.root
        files = {path.name: path.read_text(encoding="utf-8") for path in (recipe, pinned_site)}
        recipe, pinned_site = Path(PINNED) / recipe.name, Path(PINNED) / pinned_site.name
    # --wait: whoever else is at work on the step, the job goes on when that one is done.
    common = ["--only", "--here", "--wait", "--plain", "--site", str(pinned_site), "--runs", runs, *options]
    return Order(
        recipe=re.sub(r"[^a-z0-9]+", "-", loaded.name.lower()).strip("-") or "chain",
        number=int(folder.name),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        cwd=cwd,
        environment=environment,
        site=asdict(site),
        steps=[
            StepOrder(
                stage=step.name,
                command=[python, "-m", MODULE, step.name, str(recipe), *common],
                after=list(dict.fromkeys(parent for _, parent in step.parents if parent in names)),
            )
            for step in steps
        ],
        files=files,
    )


def _pin(loaded: LoadedRecipe, folder: Path) -> tuple[Path, Path]:
    """Write the recipe and its site down as they are: a job may start days after somebody edits them."""
    plain = _literal(asdict(loaded.settings))
    site = plain.pop("site")
    recipe, site_file = folder / f"{loaded.name}.yaml", folder / SITE_FILE
    recipe.write_text(
        yaml.safe_dump({SUBMITTED: True, **plain}, sort_keys=False, allow_unicode=True), encoding="utf-8"
    )
    # On its machine a step asks no cluster for anything.
    here = {key: value for key, value in site.items() if key not in LOCAL_SETTINGS}
    site_file.write_text(yaml.safe_dump({"name": site["name"], **here}, sort_keys=False), encoding="utf-8")
    again = recipes.load(str(recipe), ROOT, site=str(site_file))
    if schema.identity_values(again.settings) != schema.identity_values(loaded.settings):
        raise UserError(f"the settings of {loaded.name} cannot be written down and read back as they are")
    return recipe, site_file


def _literal(value: Any) -> Any:
    """Settings whose texts mean themselves when they are read again, ``${`` included."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    return value


def _check_secrets(site: schema.Site) -> None:
    if site.kind == "slurm":
        missing = [name for name in site.secrets if not os.environ.get(name)]
        if missing:
            raise UserError(
                f"site.secrets names {', '.join(missing)}, which this shell does not have: export it first; a job "
                "gets it from here, and it is written down nowhere"
            )


@contextmanager
def _folder(recipe_folder: Path, dry: bool) -> Iterator[Path]:
    """The folder of the next submission; nothing is left of it after a dry run or a failure.

    A dry run has the very folder that a submission after it would have, so that its texts
    are the same.
    """
    launch = recipe_folder / "launch"
    created = [path for path in (launch, *launch.parents) if not path.exists()]
    launch.mkdir(parents=True, exist_ok=True)
    last = max((int(path.name) for path in submissions(recipe_folder)), default=0)
    folder = (launch / str(last + 1)).resolve()
    try:
        folder.mkdir()
    except FileExistsError:
        raise UserError(
            f"{folder} is there already, without jobs: another submission is being made, or was cut off; "
            f"look whether jobs of it are in the queue, then remove the folder"
        ) from None
    (folder / ENDS).mkdir()
    try:
        yield folder
    finally:
        if dry or not (folder / JOBS).is_file():
            shutil.rmtree(folder)
            with contextlib.suppress(OSError):
                for path in created:
                    path.rmdir()
