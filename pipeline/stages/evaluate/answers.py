"""Greedy answers to held-out questions, in batches, with a key-value cache."""

from __future__ import annotations

from typing import Any

import torch

from pipeline.conversations.documents import answer_ends
from pipeline.engines.automodel.tokenise import prompt_ids, text_of
from pipeline.stages.evaluate.scoring import Progress


@torch.inference_mode()
def greedy_answers(
    model: Any,
    tokenizer: Any,
    questions: list[list[dict[str, str]]],
    max_new_tokens: int,
    batch_size: int,
    progress: Progress,
) -> list[str]:
    """The model's greedy answer to each question (the turns of a conversation before it), up to the end of its turn.

    Prompts are padded on the left and masked, so an answer does not depend on its batch.
    """
    prompts = [prompt_ids(tokenizer, turns) for turns in questions]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    ends = answer_ends(tokenizer)
    answers = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        longest = max(len(prompts[index]) for index in chosen)
        inputs = torch.full((len(chosen), longest), tokenizer.pad_token_id)
        mask = torch.zeros_like(inputs)
        for row, index in enumerate(chosen):
            inputs[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, longest - len(prompts[index]) :] = 1
        output = model.generate(
            input_ids=inputs.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=tokenizer.pad_token_id,
        )
        for row, index in enumerate(chosen):
            answers[index] = answer_text(tokenizer, output[row, longest:].tolist(), ends)
        progress(min(start + batch_size, len(order)), len(order))
    return answers


def answer_text(tokenizer: Any, tokens: list[int], ends: set[Any]) -> str:
    """Text of the generated tokens before the first end token."""
    for place, token in enumerate(tokens):
        if token in ends:
            tokens = tokens[:place]
            break
    return text_of(tokenizer, tokens).strip()
