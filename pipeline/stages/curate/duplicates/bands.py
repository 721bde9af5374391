"""Which signatures are alike: banding over a file of signatures, within a set memory.

Two documents are compared when one of their bands is equal (Leskovec, Rajaraman & Ullman,
*Mining of Massive Datasets*, section 3.4) and are alike when the share of equal places, an
unbiased estimate of their Jaccard similarity, reaches the threshold.  The keys of one band
at a time are sorted; a corpus whose keys do not fit is taken in parts by key, so that what
is held does not grow with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

COMPARED = 8  # documents of a band's bucket that a newcomer is compared with
PRIME = np.uint64(0x9E3779B97F4A7C15)
CHUNK = 1 << 16  # rows hashed, or pairs compared, at a time

Pairs = Iterator[tuple[Any, Any, Any]]


def similar_pairs(
    rows: Any, bands: int, threshold: float, memory_mb: int, rank: Any | None = None, among: Any | None = None
) -> Pairs:
    """(indices, later indices, similarities) of the pairs found alike, in batches.

    ``rows`` is an array or memory map ``uint32 [documents, permutations]``.  A pair may
    come more than once, from several bands.  Of a bucket each document is compared with the
    first few: by ``rank`` (``int64 [documents]``), or as they stand.  ``among`` is a mask of the
    documents whose pairs are wanted; it changes nothing of which pairs are looked at.
    """
    count, width = len(rows), rows.shape[1] // bands
    # Keys, their order, and two masks of a part: about 32 bytes a document.
    parts = max(1, -(-count * 32 // (memory_mb << 20)))
    for band in range(bands):
        for part in range(parts):
            index, keys = _keys(rows, band * width, width, part, parts)
            for one, two in _candidates(index, keys, rank):
                if among is not None:
                    wanted = among[one] & among[two]
                    one, two = one[wanted], two[wanted]
                for start in range(0, len(one), CHUNK):
                    a, b = one[start : start + CHUNK], two[start : start + CHUNK]
                    share = (rows[a] == rows[b]).mean(axis=1, dtype=np.float32)
                    alike = share >= np.float32(threshold)
                    if alike.any():
                        yield a[alike], b[alike], share[alike]


def _keys(rows: Any, start: int, width: int, part: int, parts: int) -> tuple[Any, Any]:
    """The documents of one part, by key, and their keys of the band at ``start``."""
    indices, keys = [], []
    for first in range(0, len(rows), CHUNK):
        band = np.asarray(rows[first : first + CHUNK, start : start + width])
        key = np.full(len(band), width, dtype=np.uint64)
        for column in range(width):
            key = (key ^ band[:, column]) * PRIME
            key ^= key >> np.uint64(29)
        mine = np.nonzero(key % np.uint64(parts) == part)[0] if parts > 1 else np.arange(len(key))
        indices.append(mine + first)
        keys.append(key[mine])
    if not keys:
        return np.zeros(0, np.int64), np.zeros(0, np.uint64)
    return np.concatenate(indices), np.concatenate(keys)


def _candidates(index: Any, keys: Any, rank: Any | None = None) -> Iterator[tuple[Any, Any]]:
    """Pairs of documents with equal keys: each with the first ``COMPARED`` of its bucket before it."""
    order = np.argsort(keys, kind="stable") if rank is None else np.lexsort((rank[index], keys))
    index, keys = index[order], keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, np.int64)
    sizes = np.diff(np.r_[starts, len(keys)])
    first = np.repeat(starts, sizes)  # of each document, where its bucket begins
    rank = np.arange(len(keys)) - first
    for place in range(COMPARED):
        later = np.flatnonzero(rank > place)
        if not len(later):
            return
        yield index[first[later] + place], index[later]
