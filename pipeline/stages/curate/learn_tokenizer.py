"""Train the tokenizer on the training split, in a process that does nothing else (:mod:`.tokens` has the tokenizer)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from pipeline.schema import Curate, Model
from pipeline.stages.curate.finish import cut, shuffle_key
from pipeline.stages.curate.split import TRAIN, rows_of
from pipeline.stages.curate.tokens import train_tokenizer


def learn_tokenizer(
    shards: list[Path], splits: Path, curate: Curate, model: Model, threads: int, folder: Path
) -> None:
    """Train on the training documents' texts, or on a sample of them by the hash of their ids."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    assigned = np.load(splits, mmap_mode="r", allow_pickle=False)
    documents, most = int((assigned == TRAIN).sum()), curate.tokenizer_documents
    limit = (1 << 64) if not most or documents <= most else (1 << 64) * most // documents
    texts = (
        f"# {row['name']}\n" + cut(row["text"], curate.max_characters)
        for row in rows_of(shards, assigned, TRAIN)
        if shuffle_key(row["id"]) < limit
    )
    train_tokenizer(texts, model.vocab_size, model.context, folder)
