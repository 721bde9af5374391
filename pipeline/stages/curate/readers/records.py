"""The records of one file of the user's (chats, pairs, evaluation data), by the form that its name tells."""

from __future__ import annotations

from collections.abc import Iterator

from pipeline.documents import belongs
from pipeline.stages.curate.readers import Fault
from pipeline.stages.curate.readers.columns import read_nested
from pipeline.stages.curate.readers.lines import Record, read_objects


def read_records(path: str, max_bytes: int) -> Iterator[Record | Fault]:
    """(line or row, object) pairs of a JSONL file, a JSON array, a CSV, TSV or Parquet file."""
    if belongs("csv", path):
        yield from read_nested(path, max_bytes)
    elif belongs("parquet", path):
        from pipeline.stages.curate.readers import tables

        yield from tables.read_nested(path)
    else:
        yield from read_objects(path, max_bytes)
