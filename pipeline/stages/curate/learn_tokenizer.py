"""Train the tokenizer on the training split, in a process that does nothing else (:mod:`.tokens` has the tokenizer)."""

from __future__ import annotations

import os
from pathlib import Path

from pipeline.schema import Curate, Model
from pipeline.stages.curate.finish import cut
from pipeline.stages.curate.split import drawn
from pipeline.stages.curate.tokens import train_tokenizer


def learn_tokenizer(
    shards: list[Path], splits: Path, curate: Curate, model: Model, threads: int, folder: Path
) -> None:
    """Train on the training documents' texts, or on a sample of them by the hash of their contents."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    texts = (
        f"# {row['name']}\n" + cut(row["text"], curate.max_characters)
        for row in drawn(shards, splits, curate.tokenizer_documents)
    )
    train_tokenizer(texts, model.vocab_size, model.context, folder)
