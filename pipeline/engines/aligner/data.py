"""Curated preference pairs as NeMo-Aligner's JSON lines (``DPOModelDataset``).

A line has ``prompt`` (the conversation rendered by the chat template), ``chosen_response`` and
``rejected_response`` (each with the end token's text, as NeMo-Aligner adds none), and the rewards, where the data
have them.  The package joins prompt and response as text and demands that the prompt's tokens begin the joined text's, so a
pair for which that fails, or which is longer than the context, is left out and counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.stages.step import InputError, read_jsonl, write_jsonl

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
        kept, too_long, merged = [], 0, 0
        for record in read_jsonl(data / "preference" / f"{split}.jsonl"):
            line = _line(tokenizer, record)
            lengths = _lengths(tokenizer, line)
            merged += lengths is None
            too_long += lengths is not None and lengths > context + 1
            if lengths is not None and lengths <= context + 1:
                kept.append(line)
        if len(kept) < batch:
            raise InputError(
                f"align.global_batch_size: {batch} is more than the {len(kept)} {split} pairs that fit model.context = "
                f"{context}, and NeMo-Aligner drops an incomplete batch; make it smaller"
            )
        write_jsonl(target / name, kept)
        counts[split] = {"pairs": len(kept), "too_long": too_long, "merged_tokens": merged}
    return counts


def _line(tokenizer: Any, record: dict[str, Any]) -> dict[str, Any]:
    asked = record["prompt"]
    turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    line: dict[str, Any] = {
        "prompt": tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True),
        "chosen_response": record["chosen"] + tokenizer.eos_token,
        "rejected_response": record["rejected"] + tokenizer.eos_token,
    }
    line |= {theirs: float(record[ours]) for ours, theirs in REWARDS.items() if record.get(ours) is not None}
    return line


def _lengths(tokenizer: Any, line: dict[str, Any]) -> int | None:
    """Tokens of the longer side; None where joining the texts changes the prompt's tokens."""

    def ids(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    prompt = ids(line["prompt"])
    sides = [ids(line["prompt"] + line[f"{side}_response"]) for side in ("chosen", "rejected")]
    if any(side[: len(prompt)] != prompt for side in sides):
        return None
    return max(map(len, sides))
