"""One training stage from settings to a published model, in one process or several.

The stage prepares: examples on disk, a :class:`Run` that says what to train.  :func:`run`
trains it, in this process, or in ``launch.processes`` of them under torchrun's agent
(:mod:`pipeline.engines.automodel.rank`), which share nothing but files and the process group.
Each process builds the same recipe; process 0 reports, and publishes.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.engines.automodel import packing, publish
from pipeline.engines.automodel.adapters import require_targets
from pipeline.engines.automodel.config import FLOATS, literal, recipe_config
from pipeline.engines.automodel.cpu import keep_four_bit_gradients, make_cuda_calls_harmless
from pipeline.engines.automodel.examples import Examples, run_order, spread
from pipeline.engines.automodel.one_gpu import keep_weights
from pipeline.engines.automodel.precision import choose
from pipeline.launch import muster
from pipeline.plan.layout import layout_fault
from pipeline.schema import Optimisation
from pipeline.stages.ending import INTERRUPTED
from pipeline.stages.step import InputError, Step, write_json

OURS = "pipeline.engines.automodel."


@dataclass(frozen=True)
class Run:
    """What to train, on files that every process can read.

    ``section`` names the settings (``train``), ``kind`` the recipe class (:func:`kind_of`),
    ``model`` the folder to start from, ``parent`` the stage that made it (an adapter is published over it);
    ``group`` sequences of the examples belong together, ``labels`` are of the validation groups;
    ``precision`` is what was chosen where the settings leave it open (:mod:`.precision`).
    """

    section: str
    kind: str
    model: str
    tokenizer: str
    train: str
    validation: str
    parent: str | None = None
    group: int = 1
    labels: tuple[str, ...] = ()
    precision: str | None = None

    def settings(self, step: Step) -> Optimisation:
        """The settings of this run's section."""
        sections = {
            "pretrain": schema.Pretrain,
            "train": schema.Train,
            "reward": schema.Reward,
            "align": schema.Align,
        }
        found: Optimisation = step.section(sections[self.section])
        return replace(found, precision=self.precision) if self.precision else found


def kind_of(recipe_class: type) -> str:
    """A recipe class by a name that another process finds it by, e.g. ``preference:PreferenceRecipe``."""
    return f"{recipe_class.__module__.removeprefix(OURS)}:{recipe_class.__qualname__}"


def prepare(
    step: Step, settings: Optimisation, train: Examples, validation: Examples, section: str
) -> tuple[str, str]:
    """Store the examples of a run in their order; returns the training and validation files.

    Raises :class:`InputError` when there is nothing to train on.
    """
    if not len(train) or not len(validation):
        which = "training" if not len(train) else "validation"
        raise InputError(
            f"{section}: there is no {which} example that fits model.context; see the counts in the report of curate, "
            f"give curate more sources, or leave {section} out of the recipe's stages"
        )
    train_file, validation_file = step.state / "train.safetensors", step.state / "validation.safetensors"
    batch = settings.global_batch_size
    order = run_order(train, settings.max_steps, batch, settings.seed)
    missed = len(train) - len(set(order))
    if missed:
        step.message(
            f"{missed:,} of {len(train):,} examples are not visited: {section}.max_steps x {section}.global_batch_size "
            f"= {len(order):,} is less than an epoch"
        )
    train.save(train_file, order)
    wanted = settings.validation_batches * settings.global_batch_size
    validation.save(validation_file, spread(len(validation), wanted))
    return str(train_file), str(validation_file)


def process_count(step: Step) -> int:
    """Processes that a training step of this job runs as on each machine."""
    import torch

    asked = int(step.settings["launch"]["processes"])
    return asked or max(1, torch.cuda.device_count())


def run(step: Step, work: Run) -> dict[str, Any]:
    """Train, publish and return the figures; goes on from what an interrupted run left.

    On SIGTERM the recipe writes a checkpoint and the process ends with ``INTERRUPTED``.
    Raises :class:`InputError` where the settings do not fit the number of processes.
    """
    import torch

    count = process_count(step)
    if work.settings(step).async_checkpoint and not torch.cuda.is_available():
        step.warning(f"{work.section}.async_checkpoint needs CUDA: checkpoints are written in between")
    nodes = muster.nodes()
    _check(step, work.settings(step), work.section, count, nodes)
    work = replace(work, precision=choose(step, work.settings(step)))
    if count * nodes == 1:
        os.environ.update(_alone())
        return train(step, work)
    from pipeline.engines.automodel import rank

    return rank.launch(step, work, count)


def _check(step: Step, settings: Optimisation, section: str, count: int, nodes: int) -> None:
    """Raise :class:`InputError` unless this many processes can do, or go on with, what the settings say."""
    fault = layout_fault(settings, section, count * nodes)
    if fault:
        raise InputError(fault)
    # The data loader's place is kept for each process: with another number examples would come twice or never.
    kept = step.state / "processes.json"
    now = {"processes": count, "nodes": nodes}
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else now
    if before["processes"] * before["nodes"] != count * nodes:
        raise InputError(
            f"the interrupted attempt trained as {before['processes']} processes on each of {before['nodes']} machines, and "
            f"its checkpoints cannot be gone on from as {count} on each of {nodes}: set launch.processes="
            f"{before['processes']} launch.nodes={before['nodes']}, or let `lifecycle gc --interrupted` remove what it left"
        )
    if not kept.exists():
        write_json(kept, now)
        step.seal(kept)


def train(step: Step, work: Run) -> dict[str, Any]:
    """This process's part of a run; every process of the group calls it."""
    recipe = build(step, work)
    recipe.setup()
    if getattr(work.settings(step), "peft", "none") != "none":
        require_targets(recipe.model_parts[0], work.settings(step).lora.targets, work.section)  # type: ignore[attr-defined]
    if recipe.step_scheduler.step < recipe.step_scheduler.max_steps:
        with _measured(step, recipe):
            recipe.run_train_validation_loop()
    if recipe.step_scheduler.step < recipe.step_scheduler.max_steps:
        if recipe.dist_env.is_main:
            step.message("stopped after writing a checkpoint")
        raise SystemExit(INTERRUPTED)
    settings = work.settings(step)
    if settings.best_every:
        recipe.take_best()
    figures: dict[str, Any] = {**recipe.final_figures(), "precision": settings.precision}
    publish.publish(step, settings, recipe.model_parts[0], work)
    return figures


def _measured(step: Step, recipe: Any) -> AbstractContextManager[None]:
    """Measures what training holds in memory where the job asks for it (:mod:`.footprint`)."""
    if not step.extra.get("footprint"):
        return nullcontext()
    from pipeline.engines.automodel import footprint

    return footprint.measured(step, recipe)


def build(step: Step, work: Run) -> Any:
    """The AutoModel recipe of a run, not yet set up."""
    import importlib

    import torch
    from nemo_automodel.components.config.loader import ConfigNode

    make_cuda_calls_harmless()
    packing.register()
    torch.set_num_threads(max(1, step.threads // int(os.environ["LOCAL_WORLD_SIZE"])))
    settings = work.settings(step)
    if getattr(settings, "peft", "none") == "qlora":
        keep_four_bit_gradients()
    keep_weights(FLOATS[settings.precision])
    config = recipe_config(
        settings,
        model=Path(work.model),
        tokenizer=Path(work.tokenizer),
        train=Path(work.train),
        validation=Path(work.validation),
        checkpoints=step.state / "checkpoints",
        group=work.group,
    )
    module, name = work.kind.split(":")
    recipe = getattr(importlib.import_module(f"{OURS}{module}"), name)(ConfigNode(literal(config)))
    recipe.report_to(step, settings, work)
    return recipe


def _alone() -> dict[str, str]:
    """What torchrun would have set, for a single process on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def write_run(path: Path, work: Run) -> None:
    """Leave a run for other processes to read."""
    write_json(path, asdict(work))


def read_run(path: Path) -> Run:
    """What :func:`write_run` left."""
    plain = json.loads(path.read_text(encoding="utf-8"))
    return Run(**{**plain, "labels": tuple(plain["labels"])})
