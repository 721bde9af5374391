"""A training that has come apart, or learned nothing: how it is found, and what a person is told."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from pipeline.engines.automodel.config import learning_rate
from pipeline.schema import Optimisation
from pipeline.stages.step import InputError

LOSS = "the loss"  # of a training step
USUAL_WEIGHT_DECAY = 0.1  # of AdamW; Llama, GPT-3 and OLMo trained with it


def require_finite(
    figures: dict[str, Any], done: int, settings: Optimisation, section: str, checkpoints: Path
) -> None:
    """Raise :class:`InputError` where a figure of optimiser step ``done`` is not finite; says what can be done.

    ``figures`` maps words for a figure ("the loss") to its value; ``checkpoints`` is where AutoModel keeps them.
    """
    for what, value in figures.items():
        if not math.isfinite(value):
            first = ""
            if done <= 1 and what == LOSS:  # before any update
                first = "This loss is still that of the model that training began with: look at its weights first. "
            raise InputError(
                f"{section}: {what} after step {done:,} of {settings.max_steps:,} is {float(value)}: training has come apart, "
                f"and nothing is published. {first}{_way_back(checkpoints)} What can be tried: {_remedies(settings, section)}"
            )


def finite_weights(parts: list[Any], world_size: int, device: Any) -> bool:
    """Whether all that is trained is finite, in every process: each looks at its own shards."""
    weights = (weight for part in parts for weight in part.parameters() if weight.requires_grad)
    own = (weight.detach() for weight in weights)
    local = [weight.to_local() if isinstance(weight, DTensor) else weight for weight in own]
    sound = torch.tensor(float(all(bool(torch.isfinite(weight).all()) for weight in local)), device=device)
    if world_size > 1:
        torch.distributed.all_reduce(sound, torch.distributed.ReduceOp.MIN)
    return bool(sound)


def learned_nothing(loss: float, start: float | None, vocabulary: int | None) -> str | None:
    """What to tell of a validation loss that is no better than chance, or than where training began.

    ``vocabulary``: tokens that a guess is spread over, None where the loss is no cross-entropy over them;
    ``start``: the training loss of the first step.
    """
    guess = None if vocabulary is None else math.log(vocabulary)
    if guess is not None and loss > guess:
        found = f"above that of guessing, {guess:.3f} (every token of {vocabulary:,} as likely as another)"
    elif start is not None and loss > start:
        found = f"above the training loss of the first step, {start:.3f}"
    else:
        return None
    return f"the validation loss at the end, {loss:.3f}, is {found}: what is published is worse than what training began with"


def _way_back(checkpoints: Path) -> str:
    latest = checkpoints / "LATEST"
    found = re.search(r"_step_(\d+)$", latest.resolve().name) if latest.exists() else None
    if found is None:
        return "There was no checkpoint yet; the same command begins at the start, and comes to the same end."
    return (
        f"The last good checkpoint is that of step {int(found[1]) + 1:,}; the same command goes on from it, and comes "
        "to the same end unless the machine was at fault. With another value of a setting below it is another training, "
        "which begins at the start."
    )


def _remedies(settings: Optimisation, section: str) -> str:
    """The settings most likely to be at fault first."""
    adapted = getattr(settings, "peft", "none") != "none" and settings.lora.lr is not None  # type: ignore[attr-defined]
    rate = f"{section}.{'lora.lr' if adapted else 'lr'}"
    tries = [f"a lower {rate} (now {learning_rate(settings):g})"]
    if settings.weight_decay > USUAL_WEIGHT_DECAY:
        first = (
            f"a lower {section}.weight_decay (now {settings.weight_decay:g}; {USUAL_WEIGHT_DECAY:g} is usual)"
        )
        tries.insert(0, first)
    tries.append(f"more {section}.warmup_steps (now {settings.warmup_steps})")
    if settings.grad_clip > 1:
        tries.append(f"a lower {section}.grad_clip (now {settings.grad_clip:g}; 1 is usual)")
    if settings.precision == "bf16-weights":
        tries.append(f"{section}.precision=bf16, which holds the weights in fp32")
    return ", ".join(tries)
