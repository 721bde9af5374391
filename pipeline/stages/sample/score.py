"""Who scores the answers: a reward model, or a rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pipeline.engines.automodel.tokenise import answer_ids, prompt_ids
from pipeline.schema import Sample
from pipeline.stages.house_style import check
from pipeline.stages.reading import load_classifier
from pipeline.stages.step import InputError

Turns = list[dict[str, str]]
Scorer = Callable[[list[Turns], list[str]], list[float]]

DIGITS = 4  # of a score that are kept: fewer than rounding between batches can move


def scorer(settings: Sample, tokenizer: Any, reward: Path | None) -> Scorer:
    """The scorer that the settings name: a function of prompts and their answers.

    ``reward`` is the published artifact of the stage of that name.
    """
    if settings.scorer == "house-style":
        return lambda _, answers: [float(-len(check(answer))) for answer in answers]
    if reward is None:
        raise InputError(
            "sample.scorer = reward needs the stage reward; add it, or set sample.scorer=house-style"
        )
    model = load_reward_model(reward / "model")
    return lambda prompts, answers: rewards(model, tokenizer, prompts, answers, settings.batch_size)


def load_reward_model(folder: Path) -> Any:
    """The sequence classification model of a Hugging Face folder, for reading only.

    Raises :class:`InputError` where it has more than one output.
    """
    model = load_classifier(folder)
    if model.config.num_labels != 1:
        raise InputError(f"{folder} is no reward model: it has {model.config.num_labels} labels, not one")
    return model


@torch.inference_mode()
def rewards(
    model: Any, tokenizer: Any, prompts: list[Turns], answers: list[str], batch_size: int
) -> list[float]:
    """The reward of each answer, read at its end token, rounded to ``DIGITS`` places."""
    sequences = [
        prompt_ids(tokenizer, turns) + answer_ids(tokenizer, turns, answer)
        for turns, answer in zip(prompts, answers, strict=True)
    ]
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    found = [0.0] * len(sequences)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        rows = [torch.tensor(sequences[index]) for index in chosen]
        inputs = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
        hidden = model.model(input_ids=inputs, use_cache=False).last_hidden_state
        ends = torch.tensor([len(row) - 1 for row in rows], device=hidden.device)
        scores = model.score(hidden[torch.arange(len(rows), device=hidden.device), ends])[:, 0]
        for index, score in zip(chosen, scores.tolist(), strict=True):
            found[index] = round(score, DIGITS)
    return found
