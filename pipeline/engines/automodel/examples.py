"""Token sequences: how they are stored, ordered and batched.

An example is a sequence of input tokens and, for each of them, the token to predict (or
``IGNORED``).  A sequence never holds two documents, so attention never crosses from one
into another, on any device.  A micro batch is padded to its longest sequence, and made of
sequences of like length, or packed: laid end to end in one row
(:mod:`pipeline.engines.automodel.packing`).  The order of all examples of a run is fixed
before it starts, from the seed alone: resuming is going on at the next index.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from pipeline.engines.automodel.packing import boundaries

IGNORED = -100
BUCKET = 64  # batches whose examples are sorted by length together


@dataclass
class Examples:
    """Sequences laid end to end.

    ``inputs`` and ``labels`` are ``int32 [tokens]``; example ``i`` is the slice from
    ``offsets[i]`` to ``offsets[i + 1]``; ``group`` sequences in a row belong together
    (2 for preference pairs: chosen, rejected); ``rewards`` are the ground-truth ones of a
    pair's sides, ``float32 [groups, 2]``, where there are any.
    """

    inputs: Any
    labels: Any
    offsets: Any
    group: int = 1
    rewards: Any = None

    @classmethod
    def of(
        cls,
        sequences: list[tuple[list[int], list[int]]],
        group: int = 1,
        rewards: list[tuple[float, float]] | None = None,
    ) -> Examples:
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
        given = None if rewards is None else torch.tensor(rewards, dtype=torch.float32).view(-1, 2)
        return cls(
            torch.from_numpy(inputs), torch.from_numpy(labels), torch.from_numpy(offsets), group, given
        )

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
        if self.rewards is not None:
            tensors["rewards"] = self.rewards
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

    def visits(self) -> dict[str, int]:
        """How many examples there are, how often one was visited, and how many never were."""
        seen = torch.bincount(self.order, minlength=len(self.examples))
        return {
            "examples": len(self.examples),
            "visits": len(self.order),
            "never_visited": int((seen == 0).sum()),
        }

    def first_visits(self) -> list[int]:
        """The places at which each example that is visited is visited first, in order."""
        found: dict[int, int] = {}
        for place, index in enumerate(self.order.tolist()):
            found.setdefault(index, place)
        return list(found.values())

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
        sequences = [(e.inputs[start:end].long(), e.labels[start:end].long()) for start, end in slices]
        return {"index": index, "sequences": sequences} | (
            {} if e.rewards is None else {"rewards": e.rewards[index]}
        )


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch: ``input_ids`` and ``labels`` ``int64 [sequences, longest]``, padded on the right.

    Padding needs no attention mask: it stands after every real token and is never a label.
    ``sequence`` says of each position which sequence of the batch it belongs to, and
    ``index`` names the group of each item.
    """
    rows = [row for item in items for row in item["sequences"]]
    inputs = torch.nn.utils.rnn.pad_sequence([tokens for tokens, _ in rows], batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(
        [labels for _, labels in rows], batch_first=True, padding_value=IGNORED
    )
    sequence = torch.arange(len(rows))[:, None].expand_as(labels)
    return {"input_ids": inputs, "labels": labels, "sequence": sequence, **_groups(items)}


def collate_packed(items: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch in one row: ``input_ids``, ``labels``, ``position_ids`` and ``sequence`` ``int64 [1, tokens]``.

    With what attention needs to keep the sequences apart (:func:`~.packing.boundaries`).
    """
    rows = [row for item in items for row in item["sequences"]]
    lengths = torch.tensor([len(tokens) for tokens, _ in rows])
    return {
        "input_ids": torch.cat([tokens for tokens, _ in rows])[None],
        "labels": torch.cat([labels for _, labels in rows])[None],
        "position_ids": torch.cat([torch.arange(length) for length in lengths.tolist()])[None],
        "sequence": torch.arange(len(rows)).repeat_interleave(lengths)[None],
        **_groups(items),
        **boundaries(lengths),
    }


def _groups(items: list[dict[str, Any]]) -> dict[str, Any]:
    found = {"index": torch.tensor([item["index"] for item in items])}
    if "rewards" in items[0]:
        found["rewards"] = torch.stack([item["rewards"] for item in items])
    return found


def run_order(examples: Examples, steps: int, batch: int, seed: int) -> list[int]:
    """Indices of the examples of ``steps`` batches: every epoch anew shuffled, like lengths together.

    Each example is visited once an epoch.  What does not fill a last batch is chosen by chance alone,
    before lengths are looked at, and opens the next epoch, so that at every batch of a run no example
    has been visited more than once oftener than another.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = examples.lengths()
    order: list[int] = []
    waiting: list[int] = []
    while len(order) < steps * batch:
        epoch = torch.randperm(len(examples), generator=generator).tolist()
        visits = waiting + _behind(epoch, waiting, batch - len(waiting))
        visits = visits[: steps * batch - len(order)]
        whole = len(visits) // batch * batch
        # The batch that two epochs share comes first: what waited must not wait any longer.
        shared = batch if waiting and whole else 0
        order += sorted(visits[:shared], key=lambda index: lengths[index])
        batches = []
        for start in range(shared, whole, BUCKET * batch):
            bucket = sorted(visits[start : min(start + BUCKET * batch, whole)], key=lambda i: lengths[i])
            batches += [bucket[i : i + batch] for i in range(0, len(bucket), batch)]
        for place in torch.randperm(len(batches), generator=generator).tolist():
            order += batches[place]
        waiting = visits[whole:]
    return order


def _behind(epoch: list[int], waiting: list[int], room: int) -> list[int]:
    """An epoch's order, its first ``room`` examples others than those that wait, as far as there are any.

    So no batch holds an example twice unless the batch is larger than what there is.
    """
    if not waiting:
        return epoch
    held = set(waiting)
    head: list[int] = []
    rest: list[int] = []
    for index in epoch:
        (head if len(head) < room and index not in held else rest).append(index)
    return head + rest


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` of ``count`` indices, evenly spread: data files go source by source."""
    if count <= wanted:
        return list(range(count))
    return [place * count // wanted for place in range(wanted)]
