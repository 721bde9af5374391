"""A shuffle that holds a few megabytes, whatever the corpus.

The shuffled order is the order of the keys: an output shard is a range of keys.  The last
pass left each shard's records sorted by key (:mod:`pipeline.stages.curate.finish`), so a
worker reads the index of its range from every shard, sorts that, and copies the records
over in batches.  A repeated record's key is hashed anew for each repetition, so the order
of one repetition tells nothing of the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pipeline.stages.curate.blend import WHOLE, Blend, Share
from pipeline.stages.curate.shards import FolderWork

BATCH_BYTES = 16 << 20  # of records that a worker holds at once
ROW_GROUP = 10_000  # records of a Parquet row group, if they are not too long
PLACES = np.dtype(
    [("key", np.uint64), ("begin", np.int64), ("length", np.int64), ("folder", np.int32), ("copy", np.int32)]
)


class Shuffle(FolderWork):
    """Write output shards: ranges of keys of one data set and split."""

    def __init__(self, folders: list[Path], blends: dict[str, Blend], formats: str) -> None:
        self.name = "shuffle"
        self.folders = [str(folder) for folder in folders]
        self.blends = {name: blend.plain() for name, blend in blends.items()}
        self.formats = formats

    def needs(self, sources: list[str]) -> list[Path]:
        """The records of the data set and split in every shard that has some."""
        folders = (Path(folder) for folder in self.folders)
        return [f / f"{sources[0]}.jsonl" for f in folders if (f / f"{sources[0]}.npz").exists()]

    def make(self, sources: list[str], part: Path) -> None:
        """``sources``: data set and split, number of the shard, number of shards."""
        name, number, count = sources[0], int(sources[1]), int(sources[2])
        low, high = WHOLE * number // count, WHOLE * (number + 1) // count
        index = self._index(name, low, high)
        with _Output(part, self.formats) as output:
            for batch in _batches(index["length"]):
                for line in self._lines(name, index[batch]):
                    output.write(line)

    def _index(self, name: str, low: int, high: int) -> Any:
        """Where the records lie whose keys are in a range, in their order."""
        blend = Blend({int(o): Share(*each) for o, each in self.blends.get(name, {}).items()})
        found = [np.zeros(0, dtype=PLACES)]
        for number, folder in enumerate(self.folders):
            path = Path(folder, f"{name}.npz")
            if not path.exists():
                continue
            with np.load(path, allow_pickle=False) as kept:
                keys, origins, begins = kept["keys"], kept["origins"], kept["begins"]
            copies = blend.copies(keys, origins)
            for copy in range(int(copies.max(initial=1))):
                turned = turn(keys, copy)
                inside = np.flatnonzero(
                    (turned >= np.uint64(low)) & (turned <= np.uint64(high - 1)) & (copies > copy)
                )
                places = np.zeros(len(inside), dtype=PLACES)
                places["key"], places["copy"], places["folder"] = turned[inside], copy, number
                places["begin"], places["length"] = begins[inside], np.diff(begins)[inside]
                found.append(places)
        index = np.concatenate(found)
        return index[np.argsort(index["key"], kind="stable")]

    def _lines(self, name: str, index: Any) -> list[bytes]:
        """The records of a part of the index; every shard is opened once."""
        lines: list[bytes] = [b""] * len(index)
        by_folder = np.lexsort((index["begin"], index["folder"]))
        cuts = np.flatnonzero(np.diff(index["folder"][by_folder])) + 1
        for group in np.split(by_folder, cuts) if len(index) else []:
            folder = self.folders[int(index["folder"][group[0]])]
            with open(Path(folder, f"{name}.jsonl"), "rb") as handle:
                for place in group.tolist():
                    handle.seek(int(index["begin"][place]))
                    line = handle.read(int(index["length"][place]))
                    lines[place] = _copied(line, int(index["copy"][place]))
        return lines


def turn(keys: Any, copy: int) -> Any:
    """The keys of a repetition: splitmix64 of key and number (Steele et al. 2014)."""
    if copy == 0:
        return keys
    mixed = keys + np.uint64(copy * 0x9E3779B97F4A7C15 % WHOLE)  # wraps
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _batches(lengths: Any) -> Iterator[slice]:
    """Ranges of records of at most ``BATCH_BYTES`` together (a longer record is alone)."""
    ends = np.cumsum(lengths)
    start = 0
    while start < len(ends):
        before = int(ends[start - 1]) if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + BATCH_BYTES, side="right")))
        yield slice(start, end)
        start = end


def _copied(line: bytes, copy: int) -> bytes:
    if copy == 0:
        return line
    record = orjson.loads(line)
    record["id"] = f"{record['id']}@{copy + 1}"
    return bytes(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


class _Output:
    """One output shard, written as its records come."""

    COLUMNS = ("id", "text", "name", "source", "language")

    def __init__(self, part: Path, formats: str) -> None:
        self.parquet = not formats.startswith("jsonl")
        self.path = part / ("records.parquet" if self.parquet else "records.jsonl")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> _Output:
        if self.parquet:
            import pyarrow as pa
            import pyarrow.parquet as pq

            self._schema = pa.schema([(name, pa.string()) for name in self.COLUMNS])
            self._writer: Any = pq.ParquetWriter(self.path, self._schema, compression="zstd")
        else:
            self._writer = open(self.path, "wb")
        return self

    def write(self, line: bytes) -> None:
        """Add a record, a line of JSON."""
        if not self.parquet:
            self._writer.write(line)
            return
        self._rows.append(orjson.loads(line))
        self._bytes += len(line)
        if len(self._rows) == ROW_GROUP or self._bytes >= BATCH_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        columns = {name: [row.get(name) for row in self._rows] for name in self.COLUMNS}
        self._writer.write_table(pa.table(columns, schema=self._schema))
        self._rows, self._bytes = [], 0

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._rows and kind is None:
            self._flush()
        self._writer.close()
