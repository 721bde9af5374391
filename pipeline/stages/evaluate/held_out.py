"""The held-out data, tokenised once and shared by all models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.engines.automodel.examples import Examples, spread
from pipeline.engines.automodel.tokenise import (
    document_examples,
    instruction_examples,
    preference_examples,
    prompt_ids,
    read_records,
)
from pipeline.schema import Evaluate
from pipeline.stages.data_sets import documents


@dataclass
class HeldOut:
    """What every model is scored on.

    ``swapped`` are the instruction pairs with each question exchanged for another one's;
    ``preferences`` hold the pairs' examples and records by kind; ``skipped`` counts what
    did not fit the context, ``read`` the documents, and the windows that longer ones were cut into.  Of each record of ``questions``, all turns before the last answer are asked.
    """

    documents: Examples
    answers: Examples
    swapped: Examples
    preferences: dict[str, tuple[Examples, list[dict[str, Any]]]]
    questions: list[dict[str, Any]]
    skipped: dict[str, int]
    read: dict[str, int]


def read_held_out(data: Path, tokenizer: Any, settings: Evaluate, context: int) -> HeldOut:
    """Read and tokenise the test split of curation's artifact."""
    every = list(documents(data, "test"))
    texts = [every[place]["text"] for place in spread(len(every), settings.max_documents)]
    held_out, found = document_examples(tokenizer, texts, context)
    read = {"documents": found["documents"]}
    if found["further_windows"]:
        read["windows of documents"] = len(held_out)
    records = read_records(data / "sft" / "test.jsonl")
    pairs = records[: settings.max_pairs]
    other = swap_questions(pairs)
    fitting = [
        place
        for place, (own, swapped) in enumerate(zip(pairs, other, strict=True))
        if len(instruction_examples(tokenizer, [own, swapped], context)[0]) == 2
    ]
    answers, _ = instruction_examples(tokenizer, [pairs[p] for p in fitting], context)
    swapped_answers, _ = instruction_examples(tokenizer, [other[p] for p in fitting], context)
    skipped = {"instruction pairs": len(pairs) - len(fitting)}
    preferences: dict[str, tuple[Examples, list[dict[str, Any]]]] = {}
    candidates = read_records(data / "preference" / "test.jsonl")
    for kind in ("style", "content", "given"):
        chosen = [record for record in candidates if record["kind"] == kind][: settings.max_pairs]
        examples, kept, counts = preference_examples(tokenizer, chosen, context)
        if chosen:
            preferences[kind] = (examples, kept)
            skipped[f"{kind} pairs"] = counts["too_long"]
    questions, skipped["questions"] = _questions(tokenizer, records, settings, context)
    return HeldOut(held_out, answers, swapped_answers, preferences, questions, skipped, read)


def _questions(
    tokenizer: Any, records: list[dict[str, Any]], settings: Evaluate, context: int
) -> tuple[list[dict[str, Any]], int]:
    """The chats whose last answer is sampled, and how many left no room for one; chats of any length."""
    found: list[dict[str, Any]] = []
    left_out = 0
    for record in records:
        if len(found) == settings.generations:
            break
        if record.get("about") == "parameter":
            continue
        if len(prompt_ids(tokenizer, record["messages"][:-1])) + settings.max_new_tokens > context:
            left_out += 1
        else:
            found.append(record)
    return found, left_out


def question_of(messages: list[dict[str, str]]) -> str:
    """What an answer is shown beside: the turn before it."""
    return messages[-2]["content"]


def swap_questions(pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pair with the question of the pair half a list away; no pair keeps its own."""
    half = max(1, len(pairs) // 2)
    return [
        {**pair, "messages": [*pairs[(place + half) % len(pairs)]["messages"][:-1], pair["messages"][-1]]}
        for place, pair in enumerate(pairs)
    ]
