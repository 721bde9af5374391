"""Clusters of alike documents, and the choice of the one that stays."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np


class Clusters:
    """Documents joined by pairs (union-find); a cluster is led by its first document.

    Eight bytes a document, the only thing here that grows with the corpus.
    """

    def __init__(self, documents: int) -> None:
        self.parent = array("q", range(documents))
        self.pairs: dict[int, float] = {}

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


def choose(labels: Any, which: str, lengths: Any, scores: Any | None) -> Any:
    """For each document, whether it stays: one of each cluster.

    ``first`` keeps the first in the order of the corpus, ``longest`` the longest text,
    ``best-score`` the highest score; ties go to the first.
    """
    index = np.arange(len(labels))
    rank: Any
    if which == "longest":
        rank = -np.asarray(lengths, dtype=np.int64)
    elif which == "best-score":
        rank = -np.nan_to_num(np.asarray(scores, dtype=np.float64), nan=-np.inf)
    else:
        rank = index
    order = np.lexsort((index, rank, labels))
    stays = np.zeros(len(labels), dtype=bool)
    if len(labels):
        ordered = labels[order]
        stays[order[np.r_[True, ordered[1:] != ordered[:-1]]]] = True
    return stays
