"""Clusters of alike documents, and the choice of those that stay.

Being alike is no chain: a document may be alike to one that is alike to a third, and not to the
third itself.  So documents are taken in the order of the recipe's policy; one that is alike to none
that stays, stays, and what is alike to it goes (:func:`stars`).  Every document that goes is then at
least as alike as the threshold says to one that stays.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


class Clusters:
    """Documents joined by pairs (union-find); a cluster is led by its first document.

    Eight bytes a document, the only thing here that grows with the corpus.
    """

    def __init__(self, documents: int) -> None:
        self.parent = array("q", range(documents))

    def join(self, one: Any, two: Any) -> None:
        """Join each of ``one`` with the one at its place in ``two``."""
        for a, b in zip(one.tolist(), two.tolist(), strict=True):
            a, b = self._root(a), self._root(b)
            if a != b:
                self.parent[max(a, b)] = min(a, b)

    def labels(self) -> Any:
        """For each document the index of its cluster's first (``int64``)."""
        labels = (
            np.frombuffer(self.parent, dtype=np.int64).copy() if len(self.parent) else np.zeros(0, np.int64)
        )
        while True:
            following = labels[labels]
            if (following == labels).all():
                return labels
            labels = following

    def _root(self, index: int) -> int:
        parent = self.parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index


EDGE_BYTES = 48  # of a pair while pairs are sorted
LEAST_PAIRS = 1024

Pairs = Callable[[Any], Iterator[tuple[Any, Any, Any]]]


def stars(count: int, pairs: Pairs, rank: Any, memory_mb: int) -> tuple[Any, Any]:
    """For each document the one that stays for it (itself where it stays), and how alike they are.

    ``pairs`` gives the alike pairs among the documents of a mask, each more than once if need be;
    ``rank`` (``int64``) is the order in which documents are preferred.  The outcome is that of taking
    them one by one.  Where the pairs do not fit into memory, those that no better one is alike to
    are found first, what goes with them is taken out, and the pairs among the rest are asked
    for again.
    """
    everything = np.ones(count, dtype=bool)
    most = max(LEAST_PAIRS, (memory_mb << 20) // EDGE_BYTES)
    edges, whole = _collected(pairs(everything), rank, most, count)
    if whole:
        return _taken(edges, rank, count)
    undecided, gone = everything.copy(), np.zeros(count, dtype=bool)
    while not whole:
        beaten = np.zeros(count, dtype=bool)
        for _, two, _ in _ordered(pairs(undecided), rank):
            beaten[two] = True
        stays = undecided & ~beaten
        for one, two, _ in _ordered(pairs(undecided), rank):
            gone[two[stays[one]]] = True
        undecided &= ~stays & ~gone
        edges, whole = _collected(pairs(undecided), rank, most, count)
    gone |= _taken(edges, rank, count)[0] != np.arange(count)
    return _assigned(pairs(everything), rank, gone)


def _assigned(pairs: Iterator[tuple[Any, Any, Any]], rank: Any, gone: Any) -> tuple[Any, Any]:
    """Each that goes beside the most preferred one that stays and is alike to it."""
    count = len(gone)
    keeper, likeness = np.arange(count), np.ones(count, dtype=np.float32)
    best = np.full(count, np.iinfo(np.int64).max)
    for one, two, share in _ordered(pairs, rank):
        wanted = ~gone[one] & gone[two] & (rank[one] < best[two])
        for a, b, s in zip(one[wanted].tolist(), two[wanted].tolist(), share[wanted].tolist(), strict=True):
            if rank[a] < best[b]:
                best[b], keeper[b], likeness[b] = rank[a], a, s
    return keeper, likeness


def _ordered(pairs: Iterator[tuple[Any, Any, Any]], rank: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The pairs with the preferred one first."""
    for one, two, share in pairs:
        turned = rank[one] > rank[two]
        yield np.where(turned, two, one), np.where(turned, one, two), share


def _collected(
    pairs: Iterator[tuple[Any, Any, Any]], rank: Any, most: int, count: int
) -> tuple[tuple[Any, Any, Any], bool]:
    """The distinct pairs, and whether they are all of them: at most ``most`` are held."""
    nothing = np.zeros(0, np.int64)
    held = (nothing, nothing, np.zeros(0, np.float32))
    waiting, size = [held], 0
    for one, two, share in _ordered(pairs, rank):
        waiting.append((one.astype(np.int64), two.astype(np.int64), share))
        size += len(one)
        if size > most:
            waiting = [_distinct(waiting, count)]
            size = len(waiting[0][0])
            if size > most // 2:
                return waiting[0], False
    return _distinct(waiting, count), True


def _distinct(parts: list[tuple[Any, Any, Any]], count: int) -> tuple[Any, Any, Any]:
    one, two, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    _, first = np.unique(one * max(1, count) + two, return_index=True)
    return one[first], two[first], share[first]


def _taken(edges: tuple[Any, Any, Any], rank: Any, count: int) -> tuple[Any, Any]:
    """The outcome by pairs in memory, in the order of their preferred documents: those are settled by then."""
    one, two, share = edges
    keeper, likeness = np.arange(count), np.ones(count, dtype=np.float32)
    order = np.lexsort((rank[two], rank[one]))
    for a, b, s in zip(one[order].tolist(), two[order].tolist(), share[order].tolist(), strict=True):
        if keeper[a] == a and keeper[b] == b:
            keeper[b], likeness[b] = a, s
    return keeper, likeness


def ranking(which: str, lengths: Any, scores: Any | None) -> Any:
    """The order in which documents are preferred, ``int64``: 0 is the first to stay.

    ``first`` goes by the order of the corpus, ``longest`` by the longest text, ``best-score`` by the
    highest score; ties go to the first.
    """
    index = np.arange(len(lengths))
    value: Any
    if which == "longest":
        value = -np.asarray(lengths, dtype=np.int64)
    elif which == "best-score":
        value = -np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf)
    else:
        return index
    rank = np.empty(len(index), dtype=np.int64)
    rank[np.lexsort((index, value))] = index
    return rank


def choose(labels: Any, which: str, lengths: Any, scores: Any | None) -> Any:
    """For each document, whether it stays: one of each cluster of equal documents.

    ``first`` keeps the first in the order of the corpus, ``longest`` the longest text,
    ``best-score`` the highest score; ties go to the first.
    """
    rank = ranking(which, labels if lengths is None else lengths, scores)
    order = np.lexsort((rank, labels))
    stays = np.zeros(len(labels), dtype=bool)
    if len(labels):
        ordered = labels[order]
        stays[order[np.r_[True, ordered[1:] != ordered[:-1]]]] = True
    return stays
