"""Drawing answers in batches, each from its own stream of chance.

A token is drawn by inverting the distribution function: the row's next uniform number says
which token it is.  The numbers come from the seed, the prompt's id and the answer's number
alone, so a row draws the same beside whichever others it stands in a batch (as far as a
batch's size does not move its logits by rounding, at a boundary between two tokens).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pipeline.conversations.documents import answer_ends
from pipeline.engines.automodel.tokenise import prompt_ids
from pipeline.schema import Sample
from pipeline.stages.evaluate.answers import answer_text


def uniforms(seed: int, identifier: str, number: int, count: int) -> Any:
    """The ``count`` uniform numbers of one answer, ``float64 [count]`` in [0, 1)."""
    text = f"{seed}\0{identifier}\0{number}".encode()
    key = int.from_bytes(hashlib.sha256(text).digest()[:16], "big")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def drawn_tokens(logits: Any, chance: Any, temperature: float, top_p: float) -> Any:
    """The token of each row that its uniform number picks.

    ``logits`` is ``float [rows, vocabulary]``, ``chance`` ``float64 [rows]``; returns ``int64 [rows]``.
    With ``top_p`` below 1 the least set of likeliest tokens that holds this share is drawn from.
    """
    probabilities = (logits.double() / temperature).softmax(-1)
    if top_p >= 1:  # any order of the tokens will do
        return _inverted(probabilities, chance)
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(-1) - ordered
    place = _inverted(ordered.masked_fill(before >= top_p, 0.0), chance)
    return tokens.gather(1, place[:, None])[:, 0]


def _inverted(weights: Any, chance: Any) -> Any:
    """The place in each row where the share ``chance`` of its sum is reached, ``int64 [rows]``."""
    reached = weights.cumsum(-1)
    wanted = (chance * reached[:, -1])[:, None]
    # Rounding may lead past the last place that holds anything, which is the first to reach the sum.
    last = (reached < reached[:, -1:]).sum(-1)
    return (reached <= wanted).sum(-1).minimum(last)


class _Draw(LogitsProcessor):
    """Leaves the drawn token alone standing, for a generation that takes the likeliest."""

    def __init__(self, chances: Any, width: int, settings: Sample) -> None:
        self.chances, self.width, self.settings = chances, width, settings

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        chance = self.chances[:, input_ids.shape[1] - self.width].to(scores.device)
        tokens = drawn_tokens(scores, chance, self.settings.temperature, self.settings.top_p)
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


@torch.inference_mode()
def draw(
    model: Any,
    tokenizer: Any,
    records: list[dict[str, Any]],
    settings: Sample,
    progress: Callable[[float], None],
) -> list[list[dict[str, Any]]]:
    """``settings.answers`` answers to each record's ``prompt``: their ``text``, and whether they ``ended``.

    With a key-value cache; prompts are padded on the left and masked.
    """
    rows = [(place, number) for place in range(len(records)) for number in range(settings.answers)]
    ids = [prompt_ids(tokenizer, record["prompt"]) for record in records]
    rows.sort(key=lambda row: len(ids[row[0]]))  # stable: answers of a prompt stand together
    ends = answer_ends(tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    answers: list[list[dict[str, Any]]] = [[{} for _ in range(settings.answers)] for _ in records]
    for start in range(0, len(rows), settings.batch_size):
        chosen = rows[start : start + settings.batch_size]
        longest = max(len(ids[place]) for place, _ in chosen)
        inputs = torch.full((len(chosen), longest), pad)
        mask = torch.zeros_like(inputs)
        for row, (place, _) in enumerate(chosen):
            inputs[row, longest - len(ids[place]) :] = torch.tensor(ids[place])
            mask[row, longest - len(ids[place]) :] = 1
        count = settings.max_new_tokens
        chances = np.stack([uniforms(settings.seed, records[p]["id"], n, count) for p, n in chosen])
        output = model.generate(
            input_ids=inputs.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=count,
            do_sample=False,
            logits_processor=LogitsProcessorList([_Draw(torch.from_numpy(chances), longest, settings)]),
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
        for row, (place, number) in enumerate(chosen):
            tokens = output[row, longest:].tolist()
            ended = any(token in ends for token in tokens)
            answers[place][number] = {"text": answer_text(tokenizer, tokens, ends), "ended": ended}
        progress(min(start + settings.batch_size, len(rows)) / len(rows))
    return answers
