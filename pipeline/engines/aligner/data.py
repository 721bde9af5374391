"""Curated preference pairs as NeMo-Aligner's JSON lines (``DPOModelDataset``).

A line has ``prompt`` (the conversation rendered by the chat template), ``chosen_response`` and
``rejected_response`` (each with the end token's text, as NeMo-Aligner adds none), and the rewards, where the data
have them.  The package joins prompt and response as text and demands that the prompt's tokens begin the joined text's.  A
pair of which that makes other tokens than the model is asked with (where a message spells a control token, too), or which is longer
than the context, is left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.conversations.template import ConversationError
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.stages.step import InputError, read_jsonl, write_jsonl

SIDES = ("chosen", "rejected")
FILES = {"train": "train.jsonl", "validation": "validation.jsonl"}
REWARDS = {"score_chosen": "chosen_reward", "score_rejected": "rejected_reward"}  # ours: theirs


def write_pairs(
    data: Path, tokenizer: Any, context: int, batch: int, target: Path
) -> dict[str, dict[str, int]]:
    """Write both splits; returns counts.

    Raises :class:`InputError` when a split has fewer pairs than the global ``batch``: NeMo-Aligner
    drops the incomplete last batch, and would train on nothing.
    """
    target.mkdir(parents=True, exist_ok=True)
    counts = {}
    for split, name in FILES.items():
        kept, too_long, otherwise = [], 0, 0
        for number, record in enumerate(read_jsonl(data / "preference" / f"{split}.jsonl"), start=1):
            try:
                line = _line(tokenizer, record)
                length = _length(tokenizer, record, line)
            except ConversationError as error:
                raise InputError(f"align: {split} pair {number}: {error}") from None
            otherwise += length is None
            too_long += length is not None and length > context + 1
            if length is not None and length <= context + 1:
                kept.append(line)
        if len(kept) < batch:
            raise InputError(
                f"align.global_batch_size: {batch} is more than the {len(kept)} {split} pairs that fit model.context = "
                f"{context}, and NeMo-Aligner drops an incomplete batch; make it smaller"
            )
        write_jsonl(target / name, kept)
        counts[split] = {"pairs": len(kept), "too_long": too_long, "read_otherwise": otherwise}
    return counts


def _line(tokenizer: Any, record: dict[str, Any]) -> dict[str, Any]:
    ours = chat_tokenizer(tokenizer)
    turns = _turns(record)
    sides = [ours.answered_text([*turns, _answer(record, side)]) for side in SIDES]
    line: dict[str, Any] = {"prompt": sides[0][0]}
    line |= {f"{side}_response": f"{text}{ours.end}" for side, (_, text) in zip(SIDES, sides, strict=True)}
    line |= {theirs: float(record[own]) for own, theirs in REWARDS.items() if record.get(own) is not None}
    return line


def _turns(record: dict[str, Any]) -> list[dict[str, str]]:
    asked = record["prompt"]
    return [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)


def _answer(record: dict[str, Any], side: str) -> dict[str, str]:
    return {"role": "assistant", "content": record[side]}


def _length(tokenizer: Any, record: dict[str, Any], line: dict[str, Any]) -> int | None:
    """Tokens of the longer side; None where the joined texts are read as other tokens than the model is asked with."""
    ours = chat_tokenizer(tokenizer)
    longest = 0
    for side in SIDES:
        prompt, answer = ours.answered([*_turns(record), _answer(record, side)])
        if (
            ours.spelled(line["prompt"]) != prompt
            or ours.spelled(line["prompt"] + line[f"{side}_response"]) != prompt + answer
        ):
            return None
        longest = max(longest, len(prompt + answer))
    return longest
