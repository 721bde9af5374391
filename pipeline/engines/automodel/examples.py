"""Token sequences: how they are made from curated data, ordered, stored and batched.

An example is a sequence of input tokens and, for each of them, the token to predict (or
``IGNORED``).  A sequence never holds two documents, so attention never crosses from one
into another, on any device; batches are made of sequences of like length, so little of
them is padding.  The order of all examples of a run is fixed before it starts, from the
seed alone: resuming is going on at the next index.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

IGNORED = -100
BUCKET = 64  # batches whose examples are sorted by length together


@dataclass
class Examples:
    """Sequences laid end to end.

    ``inputs`` and ``labels`` are ``int32 [tokens]``; example ``i`` is the slice from
    ``offsets[i]`` to ``offsets[i + 1]``; ``group`` sequences in a row belong together
    (2 for preference pairs: chosen, rejected).
    """

    inputs: Any
    labels: Any
    offsets: Any
    group: int = 1

    @classmethod
    def of(cls, sequences: list[tuple[list[int], list[int]]], group: int = 1) -> Examples:
        """From (input tokens, labels) pairs of equal length."""
        lengths = np.fromiter((len(tokens) for tokens, _ in sequences), dtype=np.int64, count=len(sequences))
        total = int(lengths.sum())
        inputs = np.fromiter(
            chain.from_iterable(tokens for tokens, _ in sequences), dtype=np.int32, count=total
        )
        labels = np.fromiter(
            chain.from_iterable(labels for _, labels in sequences), dtype=np.int32, count=total
        )
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        return cls(torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(offsets), group)

    def __len__(self) -> int:
        return (len(self.offsets) - 1) // self.group

    def lengths(self) -> list[int]:
        """Tokens of the longest sequence of each group."""
        each = self.offsets[1:] - self.offsets[:-1]
        return each.view(-1, self.group).max(dim=1).values.tolist() if len(each) else []

    def save(self, path: Path, order: list[int]) -> None:
        """Store the sequences and the order in which a run visits them."""
        tensors = {
            "inputs": self.inputs,
            "labels": self.labels,
            "offsets": self.offsets,
            "order": torch.tensor(order, dtype=torch.int64),
        }
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata={"group": str(self.group)})
        part.rename(path)


class OrderedExamples(torch.utils.data.Dataset[dict[str, Any]]):
    """The examples of a run in their order; item ``n`` is what the run sees ``n``-th.

    AutoModel builds this from its configuration, by this class's dotted name.
    """

    def __init__(self, path: str, group: int) -> None:
        stored = load_file(path)
        self.order = stored.pop("order")
        self.examples = Examples(**stored, group=group)

    def __len__(self) -> int:
        return len(self.order)

    def token_counts(self) -> tuple[int, int]:
        """Input tokens and labelled tokens of everything that the run visits."""
        lengths = self.examples.offsets[1:] - self.examples.offsets[:-1]
        ends = torch.cumsum(
            torch.cat([torch.zeros(1, dtype=torch.int64), self.examples.labels != IGNORED]), 0
        )
        labelled = ends[self.examples.offsets[1:]] - ends[self.examples.offsets[:-1]]
        visits = torch.bincount(self.order, minlength=len(self.examples)).repeat_interleave(
            self.examples.group
        )
        return int((lengths * visits).sum()), int((labelled * visits).sum())

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = int(self.order[place])
        e, first = self.examples, index * self.examples.group
        slices = [(int(e.offsets[first + i]), int(e.offsets[first + i + 1])) for i in range(e.group)]
        return {
            "index": index,
            "sequences": [(e.inputs[start:end].long(), e.labels[start:end].long()) for start, end in slices],
        }


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: ``input_ids`` and ``labels`` ``int64 [sequences, longest]``, padded on the right.

    Padding needs no attention mask: it stands after every real token and is never a label.
    ``index`` names the group of each row's example.
    """
    rows = [row for item in items for row in item["sequences"]]
    inputs = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in rows], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(
        [labels for _, labels in rows], batch_first=True, padding_value=IGNORED
    )
    return {"input_ids": inputs, "labels": labels, "index": torch.tensor([item["index"] for item in items])}


def run_order(examples: Examples, steps: int, batch: int, seed: int) -> list[int]:
    """Indices of the examples of ``steps`` batches: every epoch anew shuffled, like lengths together."""
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    needed = steps * batch
    lengths = examples.lengths()
    while len(order) < needed:
        epoch = torch.randperm(len(examples), generator=generator).tolist()
        batches = []
        for start in range(0, len(epoch), BUCKET * batch):
            bucket = sorted(epoch[start : start + BUCKET * batch], key=lambda index: lengths[index])
            batches += [bucket[i : i + batch] for i in range(0, len(bucket), batch)]
        # A short last batch would shift every later one: its examples wait for another epoch.
        full = [b for b in batches if len(b) == batch] or [(epoch * batch)[:batch]]
        for place in torch.randperm(len(full), generator=generator).tolist():
            order += full[place]
    return order[:needed]


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` indices, evenly spread: data files go source by source."""
    if count <= wanted:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]


def document_examples(tokenizer: Any, texts: list[str], context: int) -> tuple[Examples, dict[str, int]]:
    """Documents as next-token examples, each between two end-of-text tokens.

    A document longer than the context is cut into windows; nothing of it is lost.
    """
    end = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    sequences = []
    windows = 0
    for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []:
        whole = [end, *ids, end]
        for start in range(0, len(whole) - 1, context):
            window = whole[start : start + context + 1]
            if len(window) > 1:
                sequences.append((window[:-1], window[1:]))
                windows += start > 0
    return Examples.of(sequences), {"documents": len(texts), "further_windows": windows}


def prompt_ids(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Tokens of a conversation up to where the assistant's answer begins."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def answer_example(prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]]:
    """Input tokens and labels of prompt and answer; only the answer's tokens are predicted."""
    whole = prompt + answer
    labels = [IGNORED] * (len(prompt) - 1) + answer
    return whole[:-1], labels


def instruction_examples(
    tokenizer: Any, records: list[dict[str, Any]], context: int
) -> tuple[Examples, dict[str, int]]:
    """Chat examples with the loss on the last answer and its end token.

    An example longer than the context is dropped and counted: a cut answer would teach
    the model to stop in mid-sentence.
    """
    sequences = []
    for record in records:
        prompt = prompt_ids(tokenizer, record["messages"][:-1])
        answer = _answer_ids(tokenizer, record["messages"][-1]["content"])
        if len(prompt) + len(answer) <= context + 1:
            sequences.append(answer_example(prompt, answer))
    return Examples.of(sequences), {"examples": len(sequences), "too_long": len(records) - len(sequences)}


def preference_examples(
    tokenizer: Any, records: list[dict[str, Any]], context: int
) -> tuple[Examples, list[dict[str, Any]], dict[str, int]]:
    """Preference pairs as two examples each (chosen, rejected), and the records they came from."""
    sequences = []
    kept = []
    for record in records:
        asked = record["prompt"]  # one user turn, or the turns of a conversation
        turns = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        prompt = prompt_ids(tokenizer, turns)
        sides = [_answer_ids(tokenizer, record[side]) for side in ("chosen", "rejected")]
        if len(prompt) + max(map(len, sides)) <= context + 1:
            sequences += [answer_example(prompt, side) for side in sides]
            kept.append(record)
    return Examples.of(sequences, group=2), kept, {"pairs": len(kept), "too_long": len(records) - len(kept)}


def _answer_ids(tokenizer: Any, answer: str) -> list[int]:
    return [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of one of curation's JSONL files."""
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]
