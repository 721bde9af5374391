"""What the exported model is held to the trained one on: prompts and documents that training never saw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.stages.data_sets import documents
from pipeline.stages.step import InputError, Step, read_jsonl

OPENING = 80  # characters of a document that stand in for a question
Turns = list[dict[str, str]]


@dataclass(frozen=True)
class Asked:
    """A conversation up to where the assistant answers, all turns of it, and the answer that it had."""

    turns: Turns
    answer: str

    @property
    def gone_on(self) -> Turns:
        """The conversation with its answer and one more question: what a template makes of both.

        A user's, also where what was answered is a tool's result, which many templates take behind a call only.
        """
        again = {"role": "user", "content": self.turns[-1]["content"]}
        return [*self.turns, {"role": "assistant", "content": self.answer}, again]


def conversations(step: Step, count: int) -> list[Asked]:
    """Test questions first, then what else curation held out; as many as there are, ``count`` at most.

    A small corpus may have fewer test questions than wanted, an untitled one none: then
    validation questions and the openings of documents (held out ones first) fill up.
    Raises :class:`InputError` where there is nothing at all to ask.
    """
    data = step.inputs["data"]
    found: list[Asked] = []
    for split in ("test", "validation"):
        for record in read_jsonl(data / "sft" / f"{split}.jsonl"):
            *turns, answer = record["messages"]
            # Of a system turn alone many templates make nothing.
            if any(turn["role"] == "user" for turn in turns):
                found.append(Asked(turns, answer["content"]))
    for split in ("test", "validation", "train"):
        if len(found) < count:
            for record in documents(data, split):
                opening = record["text"][:OPENING].strip()
                if opening:
                    found.append(Asked([{"role": "user", "content": opening}], opening))
    if not found:
        raise InputError(
            "curation has neither a question nor a document to hold the export to the trained model on; "
            "give curate.sources or curate.instructions more"
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
