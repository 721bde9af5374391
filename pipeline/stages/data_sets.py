"""The pre-training data that curation published: shards of JSONL or Parquet, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def documents(data: Path, split: str, data_set: str = "pretrain") -> Iterator[dict[str, Any]]:
    """The records of a split of curation's artifact ``data``, one at a time."""
    for shard in sorted((data / data_set / split).iterdir()):
        yield from read_shard(shard)


def read_shard(shard: Path) -> Iterator[dict[str, Any]]:
    """The records of one shard."""
    if shard.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
        return
    with open(shard, encoding="utf-8") as handle:
        for line in handle:
            yield json.loads(line)
