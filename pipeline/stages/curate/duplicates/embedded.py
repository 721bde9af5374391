"""Semantic duplicates: embeddings of all documents on disk, and the pairs that are alike.

The embeddings come from a local encoder or with the data
(:mod:`pipeline.stages.curate.semantic` does both, and the search).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import pipeline.stages.curate.semantic as semantic
from pipeline.schema import SemanticDuplicates
from pipeline.stages.curate.duplicates.clusters import Pairs
from pipeline.stages.curate.duplicates.find import Corpus
from pipeline.stages.curate.shards import DOCUMENTS, read_rows

BATCH = 64
DOCUMENTS_A_CLUSTER = 1000
SEED = 42


def corpus_pairs(
    corpus: Corpus,
    settings: SemanticDuplicates,
    memory_mb: int,
    scratch: Path,
    progress: Callable[..., None],
) -> Pairs:
    """Gives (indices, later indices, cosines) of the documents of a mask that mean the same."""
    scratch.mkdir(parents=True, exist_ok=True)
    embeddings = _embeddings(corpus, settings, scratch, progress)
    clusters = settings.clusters or max(1, len(corpus) // DOCUMENTS_A_CLUSTER)

    def pairs(among: Any) -> Iterator[tuple[Any, Any, Any]]:
        found = semantic.pairs(
            embeddings, clusters=clusters, threshold=settings.threshold, seed=SEED, memory_mb=memory_mb
        )
        for one, two, cosines in found:
            kept = among[one] & among[two]
            yield one[kept], two[kept], cosines[kept]

    return pairs


def _embeddings(
    corpus: Corpus, settings: SemanticDuplicates, scratch: Path, progress: Callable[..., None]
) -> Any:
    path, joined, at = scratch / "embeddings.npy", None, 0
    rows = (row for shard in corpus.shards for row in read_rows(shard / DOCUMENTS))
    if settings.model is not None:
        texts = _batches(row["text"] for row in rows)
        found = semantic.embed(texts, Path(settings.model), max_tokens=settings.max_tokens)
    else:
        found = (semantic.from_records(batch) for batch in _batches(rows))
    for block in found:
        if joined is None:
            joined = np.lib.format.open_memmap(
                path, mode="w+", dtype=np.float32, shape=(len(corpus), block.shape[1])
            )
        joined[at : at + len(block)] = block
        at += len(block)
        progress(at, len(corpus), "embeddings")
    return np.zeros((0, 1), dtype=np.float32) if joined is None else joined


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
