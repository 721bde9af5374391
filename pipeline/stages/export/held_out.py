"""What the exported model is held to the trained one on: prompts and documents that training never saw."""

from __future__ import annotations

from typing import Any

from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.stages.data_sets import documents
from pipeline.stages.step import InputError, Step, read_jsonl

OPENING = 80  # characters of a document that stand in for a question


def conversations(step: Step, count: int) -> list[list[dict[str, str]]]:
    """Test questions first, then what else curation held out.

    A small corpus may have fewer test questions than wanted, an untitled one none: then
    validation questions and the openings of documents (held out ones first) fill up.  Each
    conversation has a second question, for the template.  Raises :class:`InputError` when
    even so there are too few.
    """
    data = step.inputs["data"]
    found: list[list[dict[str, str]]] = []
    for split in ("test", "validation"):
        records = read_jsonl(data / "sft" / f"{split}.jsonl")
        found += [[*r["messages"][:2], r["messages"][0]] for r in records if len(r["messages"]) >= 2]
    for split in ("test", "validation", "train"):
        if len(found) < count:
            for record in documents(data, split):
                opening = {"role": "user", "content": record["text"][:OPENING].strip()}
                found.append([opening, {**opening, "role": "assistant"}, opening])
    if len(found) < count:
        raise InputError(
            f"export.parity_prompts: {count} prompts wanted, curation has {len(found)}; give it more documents"
        )
    return found[:count]


def texts(step: Step, tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """Token ids of held-out documents, each at most ``length``; validation documents where no test ones are."""
    for split in ("test", "validation"):
        found = []
        for record in documents(step.inputs["data"], split):
            ids = chat_tokenizer(tokenizer).text(record["text"])[:length]
            if len(ids) > 1:
                found.append(ids)
            if len(found) == count:
                break
        if found:
            return found
    return []
