"""Training, validation and test, without near-duplicates across the borders.

What is alike forms a group, and a group stands on one side.  Which side is decided by a hash of
its content, never by a file's name, a line's number or the order of reading: what is put in
front of a file moves nothing that was there before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schema import Curate
from pipeline.stages.curate.duplicates.find import Corpus, joined_labels
from pipeline.stages.curate.pairs import hashed
from pipeline.stages.curate.shards import DOCUMENTS, read_rows

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
LEAK_THRESHOLD = 0.5  # documents at least this alike stay on one side of the split
LEAK_ROWS = 4  # rows a band when looking for such looser likeness
LARGEST = 0.25  # a group that is more of the data is not moved to fill an empty split


def content_hash(*parts: str) -> int:
    """64 bits of a content; what a document or record is known by, wherever it stands."""
    return hashed("content", *parts)


def held_out(
    names: Any, sizes: Any, validation_share: float, test_share: float, parts: Sequence[Any] = ()
) -> Any:
    """The split of every group: ``uint8`` indices into :data:`SPLITS`.

    ``names`` are the groups' contents (the smallest :func:`content_hash` of each), ``sizes`` their
    records.  A group's place depends on its own name alone.  With few groups chance may leave a
    split empty that was asked for; the training group whose place is nearest to it goes there
    then, if another is left, so that nobody trains without validation unawares.  ``parts`` are
    masks of groups that need some in every split each (the data sets that they belong to).
    """
    places = np.fromiter((hashed("split", str(name)) / 2**64 for name in names), np.float64, len(names))
    found = np.where(
        places < test_share, TEST, np.where(places < test_share + validation_share, VALIDATION, TRAIN)
    )
    found, sizes = found.astype(np.uint8), np.asarray(sizes)
    for part in parts or [np.ones(len(found), dtype=bool)]:
        if part.any() and not (found[part] == TRAIN).any():
            found[np.flatnonzero(part)[np.argmax(sizes[part])]] = TRAIN
        for split, share in ((VALIDATION, validation_share), (TEST, test_share)):
            spare = np.flatnonzero((found == TRAIN) & part)
            if not share or (found[part] == split).any() or len(spare) < 2:
                continue
            # Not a group that is most of the data, where there is a smaller one.
            spare = spare[sizes[spare] <= max(LARGEST * sizes[part].sum(), sizes[spare].min())]
            found[spare[np.argmin(places[spare])]] = split
    return found


def assign(shards: list[Path], curate: Curate, scratch: Path) -> tuple[Any, Any]:
    """The split of every document, in order, ``uint8`` indices into :data:`SPLITS`, and its key.

    A key (``uint64``) is a hash of name and text, and of how many equal ones there were before, by
    which documents are shuffled and drawn.  ``view.npy`` beside each shard holds the signatures
    of what the model will see of its documents.
    """
    rows = Corpus(shards).on_disk("view", scratch)
    labels = joined_labels(rows, max(1, rows.shape[1] // LEAK_ROWS), LEAK_THRESHOLD, curate.memory_mb)
    contents = np.fromiter(
        (content_hash(row["name"], row["text"]) for shard in shards for row in read_rows(shard / DOCUMENTS)),
        dtype=np.uint64,
        count=len(labels),
    )
    leaders, group = np.unique(labels, return_inverse=True)
    names = np.full(len(leaders), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(names, group, contents)
    sizes = np.bincount(group, minlength=len(leaders))
    splits = held_out(names, sizes, curate.validation_share, curate.test_share)
    return splits[group], distinct(contents)


def distinct(keys: Any) -> Any:
    """The keys, with a hash of its own for every repetition, in order."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    repeated = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1 if len(keys) else np.zeros(0, np.int64)
    found, before, times = keys.copy(), -2, 0
    for place in repeated.tolist():
        times = times + 1 if place == before + 1 else 1
        found[order[place]] = hashed("again", str(int(ordered[place])), str(times))
        before = place
    return found


def rows_of(shards: list[Path], assigned: Any, split: int) -> Iterator[dict[str, Any]]:
    """The documents of one split, in order; ``assigned`` is the split of each document."""
    for place, row in enumerate(row for shard in shards for row in read_rows(shard / DOCUMENTS)):
        if assigned[place] == split:
            yield row


def keys_file(splits: Path) -> Path:
    """The file of the documents' keys beside that of their splits."""
    return splits.with_name(splits.name.replace("splits", "keys"))


def drawn(shards: list[Path], splits: Path, wanted: int) -> Iterator[dict[str, Any]]:
    """About ``wanted`` of the training documents (0: all), those with the smallest keys."""
    assigned = np.load(splits, mmap_mode="r", allow_pickle=False)
    keys = np.load(keys_file(splits), mmap_mode="r", allow_pickle=False)
    documents = int((assigned == TRAIN).sum())
    limit = (1 << 64) * min(documents, wanted or documents) // max(1, documents)
    for place, row in enumerate(row for shard in shards for row in read_rows(shard / DOCUMENTS)):
        if assigned[place] == TRAIN and int(keys[place]) < limit:
            yield row


def texts_of(shards: list[Path], splits: Path, split: int) -> Iterator[str]:
    """Their texts; ``splits`` is the file of the assignment."""
    assigned = np.load(splits, mmap_mode="r", allow_pickle=False)
    return (row["text"] for row in rows_of(shards, assigned, split))
