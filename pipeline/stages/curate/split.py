"""Training, validation and test, without near-duplicates across the borders."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schema import Curate
from pipeline.stages.curate.duplicates.find import Corpus, joined_labels
from pipeline.stages.curate.pairs import hashed
from pipeline.stages.curate.shards import DOCUMENTS, read_rows

SPLITS = ("train", "validation", "test")
TRAIN = SPLITS.index("train")
LEAK_THRESHOLD = 0.5  # documents at least this alike stay on one side of the split
LEAK_ROWS = 4  # rows a band when looking for such looser likeness


def split_of(group: str, validation_share: float, test_share: float) -> str:
    """The split of a group of alike documents, by the hash of the group's name alone.

    Adding or removing other documents never moves a group to another split.
    """
    place = hashed("split", group) / 2**64
    if place < test_share:
        return "test"
    return "validation" if place < test_share + validation_share else "train"


def assign(shards: list[Path], curate: Curate, scratch: Path) -> Any:
    """The split of every document, in order: ``uint8`` indices into :data:`SPLITS`.

    A group is named by the id of its first document; ``view.npy`` beside each shard holds
    the signatures of what the model will see of its documents.
    """
    rows = Corpus(shards).on_disk("view", scratch)
    labels = joined_labels(rows, max(1, rows.shape[1] // LEAK_ROWS), LEAK_THRESHOLD, curate.memory_mb)
    leads = np.zeros(len(labels), dtype=bool)
    leads[labels[labels != np.arange(len(labels))]] = True  # leaders of more than themselves
    found = np.zeros(len(labels), dtype=np.uint8)
    by_leader: dict[int, int] = {}
    index = 0
    for shard in shards:
        for row in read_rows(shard / DOCUMENTS):
            leader = int(labels[index])
            if leader == index:
                split = SPLITS.index(split_of(row["id"], curate.validation_share, curate.test_share))
                if leads[index]:
                    by_leader[index] = split
            else:
                split = by_leader[leader]
            found[index] = split
            index += 1
    return found


def rows_of(shards: list[Path], assigned: Any, split: int) -> Iterator[dict[str, Any]]:
    """The documents of one split, in order; ``assigned`` is the split of each document."""
    place = 0
    for shard in shards:
        for row in read_rows(shard / DOCUMENTS):
            if assigned[place] == split:
                yield row
            place += 1


def texts_of(shards: list[Path], splits: Path, split: int) -> Iterator[str]:
    """Their texts; ``splits`` is the file of the assignment."""
    assigned = np.load(splits, mmap_mode="r", allow_pickle=False)
    return (row["text"] for row in rows_of(shards, assigned, split))
