"""Exact and near-duplicates: content hashes, MinHash signatures, banding, union-find.

Signatures come from ``rensa``; two documents are compared when one of their bands is
equal (Leskovec, Rajaraman & Ullman, *Mining of Massive Datasets*, section 3.4) and joined
when the share of equal signature places, an unbiased estimate of their Jaccard
similarity, reaches the threshold.
"""

from __future__ import annotations

import hashlib
import re
from functools import partial
from typing import Any

import numpy as np

from pipeline.schema import CurateDedup
from pipeline.stages.pool import worker_pool

WORD = re.compile(r"\w+")
SEED = 42
COMPARED = 8  # documents of a band's bucket that a newcomer is compared with
LEAK_ROWS = 4  # rows a band when looking for looser likeness, across the data split
CHUNK = 2000


def content_key(text: str) -> str:
    """Digest of the text with case and white space folded; equal means exact duplicate."""
    return hashlib.sha256(" ".join(text.lower().split()).encode("utf-8")).hexdigest()


def signatures(texts: list[str], dedup: CurateDedup, workers: int) -> Any:
    """MinHash signatures, one row a text: ``uint32 [texts, permutations]``."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    work = partial(_signatures, ngram=dedup.ngram, permutations=dedup.permutations)
    with worker_pool(workers) as pool:
        rows = list(pool.map(work, chunks))
    return np.concatenate(rows) if rows else np.zeros((0, dedup.permutations), dtype=np.uint32)


def shingles(text: str, ngram: int) -> list[str]:
    """Overlapping runs of ``ngram`` lower-case words; a shorter text is one shingle."""
    words = WORD.findall(text.lower())
    if len(words) <= ngram:
        return [" ".join(words)]
    return [" ".join(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]


def clusters(rows: Any, bands: int, threshold: float) -> list[int]:
    """For every signature the index of its cluster's first member (itself when alone)."""
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    width = rows.shape[1] // bands
    for band in range(bands):
        part = np.ascontiguousarray(rows[:, band * width : (band + 1) * width])
        keys = part.view(np.dtype((np.void, part.dtype.itemsize * width))).ravel()
        buckets: dict[bytes, list[int]] = {}
        for index, key in enumerate(keys.tolist()):
            members = buckets.setdefault(key, [])
            for other in members:
                one, two = root(index), root(other)
                if one != two and float(np.mean(rows[index] == rows[other])) >= threshold:
                    parent[max(one, two)] = min(one, two)  # the first member leads
            if len(members) < COMPARED:
                members.append(index)
    return [root(index) for index in range(len(rows))]


def _signatures(texts: list[str], ngram: int, permutations: int) -> Any:
    from rensa import RMinHash

    found = np.zeros((len(texts), permutations), dtype=np.uint32)
    for index, text in enumerate(texts):
        sketch = RMinHash(num_perm=permutations, seed=SEED)
        sketch.update(shingles(text, ngram))
        found[index] = sketch.digest()
    return found
