"""MinHash signatures (Broder 1997) from ``rensa``, and the content hash of exact duplicates."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import Any

import numpy as np

from pipeline.schema import NearDuplicates
from pipeline.stages.curate.duplicates.bands import similar_pairs
from pipeline.stages.curate.duplicates.clusters import Clusters
from pipeline.stages.curate.words import TYPOGRAPHY, WORD, WORD_OR_MARKS
from pipeline.stages.pool import worker_pool

SEED = 42
CHUNK = 2000


def content_key(text: str, fold: bool = True) -> str:
    """Digest of the text (with case and white space folded); equal means exact duplicate."""
    return hashlib.sha256(folded(text, fold)).hexdigest()


def folded(text: str, fold: bool) -> bytes:
    """The bytes that exact duplicates share."""
    return (" ".join(text.lower().split()) if fold else text).encode("utf-8", "replace")


def shingles(text: str, ngram: int, marks: bool = True) -> list[str]:
    """Overlapping runs of ``ngram`` lower-case words; a shorter text is one shingle.

    With ``marks`` a run of punctuation counts as a word: ``a <= b`` is not ``a < b``, and code differs
    by little else.  A text without a word (signs, emoji) is one shingle as it is, so only its like
    resembles it.
    """
    lowered = text.lower()
    words = WORD.findall(lowered) or [text]
    if marks and len(words) > 1:
        words = WORD_OR_MARKS.findall(lowered.translate(TYPOGRAPHY))
    if len(words) <= ngram:
        return [" ".join(words)]
    return [" ".join(words[i : i + ngram]) for i in range(len(words) - ngram + 1)]


def signature_rows(texts: list[str], ngram: int, permutations: int, marks: bool = True) -> Any:
    """MinHash signatures, one row a text: ``uint32 [texts, permutations]``."""
    from rensa import RMinHash

    found = np.zeros((len(texts), permutations), dtype=np.uint32)
    for index, text in enumerate(texts):
        sketch = RMinHash(num_perm=permutations, seed=SEED)
        sketch.update(shingles(text, ngram, marks))
        found[index] = sketch.digest()
    return found


def signatures(texts: list[str], settings: NearDuplicates, workers: int, *, marks: bool = True) -> Any:
    """The signatures of many texts, by a pool of workers."""
    chunks = [texts[start : start + CHUNK] for start in range(0, len(texts), CHUNK)]
    work = partial(signature_rows, ngram=settings.ngram, permutations=settings.permutations, marks=marks)
    if workers <= 1 or len(chunks) <= 1:
        rows = [work(chunk) for chunk in chunks]
    else:
        with worker_pool(workers) as pool:
            rows = list(pool.map(work, chunks))
    return np.concatenate(rows) if rows else np.zeros((0, settings.permutations), dtype=np.uint32)


def clusters(rows: Any, bands: int, threshold: float) -> list[int]:
    """For every signature the index of its cluster's first member (itself when alone)."""
    joined = Clusters(len(rows))
    for one, two, _ in similar_pairs(rows, bands, threshold, memory_mb=256):
        joined.join(one, two)
    return [int(label) for label in joined.labels()]
