"""Shards on disk, and the work on one shard as a single Curator stage.

A shard is a folder::

    00012/
      documents.jsonl   the documents, in order
      counts.json       what happened on the way: see :func:`counts_of`
      dropped.jsonl     the dropped documents: all on request, else samples of them
      NAME.npy          measures for what comes next, one row a document

made beside its place and renamed into it, so it is there whole or not at all.  The same
stage objects make the same bytes in a pool of processes and on a Ray cluster.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
import pandas as pd
from nemo_curator.backends.base import WorkerMetadata
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.tasks import DocumentBatch, FileGroupTask

from pipeline import strict_json
from pipeline.stages.curate.text_stages import LEDGER, Ledger

DOCUMENTS, COUNTS, DROPPED = "documents.jsonl", "counts.json", "dropped.jsonl"
SHARD = 4000  # documents
SHARD_BYTES = 8 << 20  # of text: a shard of long documents holds fewer
COLUMNS = ("number", "id", "name", "kind", "source", "origin", "text", "arguments")


class Measure(Protocol):
    """Something computed of every document that a later step needs, saved beside the shard."""

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """NumPy arrays by file name, one row a document."""
        ...


class Gone(Exception):
    """A shard must be made again, and what it is made of was released: curation begins anew."""


class FolderWork(ProcessingStage[FileGroupTask, FileGroupTask]):
    """Work that makes one folder out of others; ``task.data`` ends with the folder to make."""

    _is_abstract_root = True
    workers: int | None = None  # actors on a Ray cluster; None: as many as Ray finds room for

    def num_workers(self) -> int | None:
        """Actors on a Ray cluster."""
        return self.workers

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """What a worker needs once."""

    def needs(self, sources: list[str]) -> list[Path]:
        """The files of earlier work that a task reads."""
        return [Path(sources[0]) / DOCUMENTS]

    def process(self, task: FileGroupTask) -> FileGroupTask:
        """Make the target, unless it is there."""
        *sources, target = task.data
        if not Path(target).exists():
            with Making(Path(target)) as part:
                self.make(sources, part)
        return FileGroupTask(dataset_name=task.dataset_name, data=[target], _metadata=task._metadata)

    def make(self, sources: list[str], part: Path) -> None:
        """Fill the folder ``part``."""
        raise NotImplementedError


class ShardWork(FolderWork):
    """Read a shard, pass it through stages, measure what is left, write it."""

    def __init__(
        self,
        stages: list[ProcessingStage[DocumentBatch, DocumentBatch]],
        measures: list[Measure],
        keep_dropped: bool,
    ) -> None:
        self.name = "shard"
        self.stages, self.measures, self.keep_dropped = stages, measures, keep_dropped

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Set every stage up, once a worker."""
        for stage in self.stages:
            stage.setup(worker_metadata)

    def make(self, sources: list[str], part: Path) -> None:
        """``sources`` is one shard."""
        rows = list(read_rows(Path(sources[0]) / DOCUMENTS))
        ledger = Ledger(keep_rows=self.keep_dropped)
        if rows:
            batch: DocumentBatch | None = DocumentBatch(
                dataset_name="documents",
                data=pd.DataFrame(rows, columns=_columns(rows), dtype=object),
                _metadata={LEDGER: ledger},
            )
            for stage in self.stages:
                batch = stage.process(batch)
                if batch is None or not len(batch.to_pandas()):
                    batch = None
                    break
            rows = [] if batch is None else _records(batch.to_pandas())
        write_shard(part, rows, counts_of(ledger, len(rows)), self.measures)
        write_rows(part / DROPPED, ledger.rows)


class Making:
    """A folder made beside its place and renamed into it on success."""

    def __init__(self, target: Path) -> None:
        self.target = target
        # Two workers of a cluster may make the same shard; the first to finish counts.
        self.part = target.with_name(f".{target.name}.{os.uname().nodename}.{os.getpid()}.part")

    def __enter__(self) -> Path:
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        return self.part

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            try:
                self.part.rename(self.target)
            except OSError:
                if not self.target.exists():
                    raise
        shutil.rmtree(self.part, ignore_errors=True)


def write_shard(
    folder: Path, rows: list[dict[str, Any]], counts: dict[str, Any], measures: Iterable[Measure]
) -> None:
    """Write a shard's files into a folder."""
    write_rows(folder / DOCUMENTS, rows)
    for measure in measures:
        for name, array in measure.columns(rows).items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
    (folder / COUNTS).write_bytes(orjson.dumps(counts, option=orjson.OPT_SORT_KEYS))


def counts_of(ledger: Ledger, left: int) -> dict[str, Any]:
    """A ledger as plain JSON: ``left``, ``dropped`` and ``found`` by stage and reason, ``changed``, ``passed``."""
    return {
        "left": left,
        "dropped": nested(ledger.dropped),
        "found": nested(ledger.found),
        "changed": dict(ledger.changed),
        "passed": [list(each) for each in ledger.passed],
    }


def nested(counter: Counter[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Counts by two keys as a mapping of mappings."""
    out: dict[str, dict[str, int]] = {}
    for (one, two), count in sorted(counter.items()):
        out.setdefault(one, {})[two] = count
    return out


def bucket(count: int) -> int:
    """The bucket of a length in a histogram with edges at powers of two."""
    return int(count).bit_length()


def read_counts(shard: Path) -> dict[str, Any]:
    """The counts of a shard."""
    return dict(json.loads((shard / COUNTS).read_bytes()))


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a JSONL file that curation wrote, one at a time."""
    with open(path, "rb") as handle:
        for line in handle:
            yield orjson.loads(line)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write records as JSONL."""
    with open(path, "wb") as handle:
        for row in rows:
            handle.write(dumps(row))


def dumps(row: dict[str, Any]) -> bytes:
    """A record as a line of JSON; lone surrogates, which UTF-8 cannot hold, become '?'."""
    try:
        return bytes(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY))
    except TypeError:
        text = strict_json.dumps(row, ensure_ascii=False).encode("utf-8", "replace")
        return text + b"\n"


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    more = {name for row in rows for name in row} - set(COLUMNS)
    return [*COLUMNS, *sorted(more)]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    names = list(frame.columns)
    columns = [frame[name].tolist() for name in names]
    return [
        {name: value for name, value in zip(names, values, strict=True) if not _missing(value)}
        for values in zip(*columns, strict=True)
    ]


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)
