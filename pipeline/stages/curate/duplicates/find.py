"""Find the duplicates of a corpus from its shards' measures; write the list of those that go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.stages.curate.duplicates.bands import similar_pairs
from pipeline.stages.curate.duplicates.clusters import Clusters, Pairs, choose, ranking, stars
from pipeline.stages.curate.shards import DOCUMENTS, read_rows

EXAMPLES = 5  # clusters shown
SHOWN_MEMBERS = 4
SHOWN_CHARACTERS = 400
REMOVALS = "removals.parquet"
CHUNK_ROWS = 1 << 20


@dataclass
class Found:
    """The clusters of a corpus: how many, how large, and some of them in full."""

    clusters: int
    removed: int
    sizes: dict[str, int]
    examples: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """As plain JSON."""
        return {
            "clusters": self.clusters,
            "removed": self.removed,
            "sizes": self.sizes,
            "examples": self.examples,
        }


class Corpus:
    """The measures of all shards, in the order of the documents."""

    def __init__(self, shards: list[Path]) -> None:
        self.shards = shards
        self.counts = [len(self._open(shard, "numbers")) for shard in shards]
        self.starts = np.r_[0, np.cumsum(self.counts)].astype(np.int64)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def column(self, name: str) -> Any:
        """A one-dimensional measure of all documents, in memory."""
        parts = [np.asarray(self._open(shard, name)) for shard in self.shards]
        return np.concatenate(parts) if parts else np.zeros(0)

    def ranking(self, which: str) -> Any:
        """The order in which documents are preferred (:func:`.clusters.ranking`)."""
        scores = self.column("scores") if which == "best-score" else None
        return ranking(which, self.column("lengths"), scores)

    def chosen(self, labels: Any, which: str) -> Any:
        """Which documents stay, one of each label."""
        scores = self.column("scores") if which == "best-score" else None
        return choose(labels, which, self.column("lengths"), scores)

    def on_disk(self, name: str, folder: Path) -> Any:
        """A measure of all documents as one memory map in ``folder``."""
        parts = [self._open(shard, name) for shard in self.shards]
        if not parts:
            return np.zeros((0, 16), dtype=np.uint32)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.npy"
        joined: Any = np.lib.format.open_memmap(
            path, mode="w+", dtype=parts[0].dtype, shape=(len(self), *parts[0].shape[1:])
        )
        for start, part in zip(self.starts, parts, strict=False):
            joined[start : start + len(part)] = part
        joined.flush()
        return np.load(path, mmap_mode="r", allow_pickle=False)

    def texts(self, indices: set[int]) -> dict[int, dict[str, Any]]:
        """The documents at these places; reads only the shards that hold them."""
        found = {}
        for shard, start, count in zip(self.shards, self.starts, self.counts, strict=False):
            wanted = {index - int(start) for index in indices if start <= index < start + count}
            if wanted:
                for place, row in enumerate(read_rows(shard / DOCUMENTS)):
                    if place in wanted:
                        found[place + int(start)] = row
        return found

    def _open(self, shard: Path, name: str) -> Any:
        path = shard / f"{name}.npy"
        # An empty file cannot be mapped.
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:
            return np.load(path, allow_pickle=False)


def exact(corpus: Corpus, which: str, memory_mb: int, target: Path) -> Found:
    """Exact duplicates by content key, in parts by key."""
    joined = Clusters(len(corpus))
    parts = max(1, -(-len(corpus) * 48 // (memory_mb << 20)))
    for part in range(parts):
        index, keys = _part(corpus, part, parts)
        order = np.lexsort((index, keys[:, 1], keys[:, 0]))
        index, keys = index[order], keys[order]
        same = np.flatnonzero((keys[1:] == keys[:-1]).all(axis=1))
        joined.join(index[same], index[same + 1])
    labels = joined.labels()
    return _finish(corpus, labels, corpus.chosen(labels, which), target, None)


def near(
    corpus: Corpus, bands: int, threshold: float, which: str, memory_mb: int, target: Path, scratch: Path
) -> Found:
    """Near-duplicates by MinHash signatures: each that goes is alike to one that stays."""
    rows = corpus.on_disk("signatures", scratch)
    rank = corpus.ranking(which)

    def pairs(among: Any) -> Iterator[tuple[Any, Any, Any]]:
        return similar_pairs(rows, bands, threshold, memory_mb, rank, among)

    return by_pairs(corpus, pairs, which, memory_mb, target)


def joined_labels(rows: Any, bands: int, threshold: float, memory_mb: int) -> Any:
    """For each signature the index of its cluster's first."""
    joined = Clusters(len(rows))
    for one, two, _ in similar_pairs(rows, bands, threshold, memory_mb):
        joined.join(one, two)
    return joined.labels()


def by_pairs(corpus: Corpus, pairs: Pairs, which: str, memory_mb: int, target: Path) -> Found:
    """Duplicates by alike pairs, which are given as often as they are asked for (:func:`.clusters.stars`)."""
    keeper, likeness = stars(len(corpus), pairs, corpus.ranking(which), memory_mb)
    stays = keeper == np.arange(len(keeper))
    return _finish(corpus, keeper, stays, target, lambda one, _: float(likeness[one]))


def by_labels(corpus: Corpus, labels: Any, which: str, target: Path) -> Found:
    """Duplicates by clusters found elsewhere: for each document the place of its cluster's first."""
    return _finish(corpus, labels, corpus.chosen(labels, which), target, lambda one, two: float("nan"))


def _part(corpus: Corpus, part: int, parts: int) -> tuple[Any, Any]:
    indices, keys = [], []
    for start, shard in zip(corpus.starts, corpus.shards, strict=False):
        key = np.asarray(corpus._open(shard, "keys"))
        mine = np.flatnonzero(key[:, 0] % np.uint64(parts) == part) if parts > 1 else np.arange(len(key))
        indices.append(mine + start)
        keys.append(key[mine])
    if not keys:
        return np.zeros(0, np.int64), np.zeros((0, 2), np.uint64)
    return np.concatenate(indices), np.concatenate(keys)


def _finish(
    corpus: Corpus, labels: Any, stays: Any, target: Path, likeness: Callable[[int, int], float] | None
) -> Found:
    gone = np.sort(corpus.column("numbers")[~stays].astype(np.int64))
    target.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": pa.array(gone, pa.int64())}), target / REMOVALS, row_group_size=CHUNK_ROWS)
    sizes = np.bincount(labels, minlength=len(labels)) if len(labels) else np.zeros(0, np.int64)
    several = np.flatnonzero(sizes > 1)
    counted = Counter(str(int(size)) if size < 10 else "10 or more" for size in sizes[several])
    return Found(
        len(several),
        len(gone),
        dict(sorted(counted.items())),
        _examples(corpus, labels, stays, several, sizes, likeness),
    )


def _examples(
    corpus: Corpus,
    labels: Any,
    stays: Any,
    several: Any,
    sizes: Any,
    likeness: Callable[[int, int], float] | None,
) -> list[dict[str, Any]]:
    """The largest cluster and some others, spread over the corpus."""
    if not len(several):
        return []
    largest = several[np.argmax(sizes[several])]
    spread = several[np.linspace(0, len(several) - 1, EXAMPLES).astype(int)]
    chosen = list(dict.fromkeys([int(largest), *(int(each) for each in spread)]))[:EXAMPLES]
    members = {leader: np.flatnonzero(labels == leader) for leader in chosen}
    kept = {leader: int(index[stays[index]][0]) for leader, index in members.items()}
    shown = {
        leader: [int(i) for i in index if int(i) != kept[leader]][:SHOWN_MEMBERS]
        for leader, index in members.items()
    }
    texts = corpus.texts({*kept.values(), *(i for each in shown.values() for i in each)})

    def entry(index: int, other: int | None) -> dict[str, Any]:
        row = texts[index]
        about: dict[str, Any] = {"id": row["id"], "text": row["text"][:SHOWN_CHARACTERS]}
        if other is not None:
            about["similarity"] = round(likeness(index, other), 3) if likeness else 1.0
        return about

    return [
        {
            "size": int(sizes[leader]),
            "kept": entry(kept[leader], None),
            "removed": [entry(i, kept[leader]) for i in shown[leader]],
        }
        for leader in chosen
    ]
