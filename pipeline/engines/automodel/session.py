"""One training stage from settings to a published model."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

from pipeline.engines.automodel.config import recipe_config
from pipeline.engines.automodel.cpu import make_cuda_calls_harmless
from pipeline.engines.automodel.examples import Examples, run_order, spread
from pipeline.schema import Optimisation
from pipeline.stages.step import InputError, Step

INTERRUPTED = 75  # exit status of a run that stopped on SIGTERM after writing a checkpoint


def prepare(
    step: Step, settings: Optimisation, train: Examples, validation: Examples, section: str
) -> tuple[Path, Path]:
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
    train.save(train_file, run_order(train, settings.max_steps, batch, settings.seed))
    wanted = settings.validation_batches * settings.micro_batch_size
    validation.save(validation_file, spread(len(validation), wanted))
    return train_file, validation_file


def train(step: Step, recipe: Any) -> Any:
    """Run AutoModel's recipe to its end and return it; resumes from its own checkpoints.

    On SIGTERM the recipe writes a checkpoint and the process ends with ``INTERRUPTED``.
    """
    recipe.setup()
    if recipe.step_scheduler.step < recipe.step_scheduler.max_steps:
        recipe.run_train_validation_loop()
    if recipe.step_scheduler.step < recipe.step_scheduler.max_steps:
        step.message("stopped after writing a checkpoint")
        raise SystemExit(INTERRUPTED)
    return recipe


def build(
    recipe_class: Any,
    step: Step,
    settings: Optimisation,
    *,
    model: Path,
    tokenizer: Path,
    files: tuple[Path, Path],
    group: int = 1,
) -> Any:
    """An AutoModel recipe over the given model and examples, not yet set up."""
    import torch
    from nemo_automodel.components.config.loader import ConfigNode

    make_cuda_calls_harmless()
    _single_process_rendezvous()
    torch.set_num_threads(step.threads)
    config = recipe_config(
        settings,
        model=model,
        tokenizer=tokenizer,
        train=files[0],
        validation=files[1],
        checkpoints=step.state / "checkpoints",
        group=group,
    )
    recipe = recipe_class(ConfigNode(config))
    recipe.report_to(step, settings.precision)
    return recipe


def _single_process_rendezvous() -> None:
    """What torchrun would have set, for a single process on loopback."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0",
        LOCAL_RANK="0",
        WORLD_SIZE="1",
        LOCAL_WORLD_SIZE="1",
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
