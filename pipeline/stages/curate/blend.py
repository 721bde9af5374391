"""Blending by weight, with exact account of tokens, and a shuffle that holds one shard at a time.

Every record has a key, a hash of its id.  A source that is to give ``w`` of the tokens
gives its records in the order of their keys until the budget is reached; repeating it is
giving them all once more.  So what is taken depends on the records alone, and grows by
whole records when the budget does.

The shuffled order is the order of the keys: an output shard is a range of keys.  The last
pass left each shard's records sorted by key (:mod:`pipeline.stages.curate.finish`), so a
worker reads its range from every shard by seeking, sorts that, and writes it.  A repeated
record has its key turned by a constant for each repetition, so copies lie far apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pipeline.schema import Curate, Source
from pipeline.stages.curate.shards import FolderWork

WHOLE = 1 << 64
TURN = 0x9E3779B97F4A7C15  # of a copy's key; 2**64 over the golden ratio spreads any number of copies


@dataclass
class Share:
    """What one source gives: ``copies`` whole copies, and once more the records up to ``limit``."""

    copies: int
    limit: int  # keys below it are given once more
    tokens: int = 0
    records: int = 0
    wanted: int = 0
    available: int = 0

    def report(self) -> dict[str, Any]:
        """As plain JSON."""
        epochs = self.tokens / self.available if self.available else 0.0
        return {
            "available_tokens": self.available,
            "wanted_tokens": self.wanted,
            "tokens": self.tokens,
            "records": self.records,
            "epochs": round(epochs, 4),
        }


@dataclass
class Blend:
    """What every source gives to the training data."""

    shares: dict[int, Share] = field(default_factory=dict)

    def copies(self, keys: Any, origins: Any) -> Any:
        """How often each record is given."""
        found = np.ones(len(keys), dtype=np.int64)
        for origin, share in self.shares.items():
            mine = origins == origin
            found[mine] = share.copies + (keys[mine] < np.uint64(min(share.limit, WHOLE - 1)))
        return found

    def plain(self) -> dict[str, Any]:
        """For the workers."""
        return {str(origin): [share.copies, share.limit] for origin, share in self.shares.items()}


def weigh(folders: list[Path], data_set: str, curate: Curate) -> Blend:
    """The blend of a data set's training split.

    Without weights every record is given once.  Raises ``ValueError`` with a sentence for
    the user when the budget would repeat a source more than ``max_epochs`` allows.
    """
    keys, tokens, origins = (
        _column(folders, f"{data_set}.train", name) for name in ("keys", "tokens", "origins")
    )
    present = sorted(set(origins.tolist()))
    available = {origin: int(tokens[origins == origin].sum()) for origin in present}
    weights = {origin: curate.sources[origin].weight for origin in present}
    if not present or any(weight is None for weight in weights.values()):
        return Blend(
            {
                origin: Share(
                    1,
                    0,
                    available[origin],
                    int((origins == origin).sum()),
                    available[origin],
                    available[origin],
                )
                for origin in present
            }
        )
    total_weight = sum(float(weight or 0) for weight in weights.values())
    part = {origin: float(weights[origin] or 0) / total_weight for origin in present}
    budget = float(curate.tokens) or min(available[origin] / part[origin] for origin in present)
    blend = Blend()
    for origin in present:
        wanted = round(budget * part[origin])
        if not available[origin]:
            raise ValueError(f"curate.sources.{origin} has no token to give to the blend")
        if wanted > available[origin] * curate.max_epochs * (1 + 1e-9):
            raise ValueError(
                f"curate.tokens: {_name(curate.sources[origin], origin)} would have to be repeated "
                f"{wanted / available[origin]:.2f} times to give {wanted:,} of {budget:,.0f} tokens; it has "
                f"{available[origin]:,}. Lower curate.tokens or its weight, or raise curate.max_epochs"
            )
        blend.shares[origin] = _share(keys[origins == origin], tokens[origins == origin], wanted)
    return blend


def _share(keys: Any, tokens: Any, wanted: int) -> Share:
    available = int(tokens.sum())
    copies, rest = divmod(wanted, available)
    order = np.argsort(keys, kind="stable")
    total = np.cumsum(tokens[order])
    # The record that reaches the budget is left out: never more than what was asked for.
    taken = int(np.searchsorted(total, rest, side="right"))
    limit = int(keys[order[taken]]) if taken < len(keys) else WHOLE
    more = keys < np.uint64(min(limit, WHOLE - 1)) if limit < WHOLE else np.ones(len(keys), dtype=bool)
    return Share(
        copies,
        limit,
        copies * available + int(tokens[more].sum()),
        copies * len(keys) + int(more.sum()),
        wanted,
        available,
    )


def _column(folders: list[Path], name: str, column: str) -> Any:
    parts = []
    for folder in folders:
        path = folder / f"{name}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                parts.append(kept[column])
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def bytes_of(folders: list[Path], name: str, blend: Blend | None) -> int:
    """Bytes of a split's records, each as often as the blend gives it."""
    total = 0
    for folder in folders:
        path = folder / f"{name}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                lengths = np.diff(kept["begins"])
                times = 1 if blend is None else blend.copies(kept["keys"], kept["origins"])
                total += int((lengths * times).sum())
    return total


def data_sets(folders: list[Path]) -> list[str]:
    """The data sets and splits that the last pass wrote, e.g. ``pretrain.train``."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.npz")})


class Shuffle(FolderWork):
    """Write output shards: ranges of keys of one data set and split."""

    def __init__(self, folders: list[Path], blends: dict[str, Blend], formats: str) -> None:
        self.name = "shuffle"
        self.folders = [str(folder) for folder in folders]
        self.blends = {name: blend.plain() for name, blend in blends.items()}
        self.formats = formats

    def make(self, sources: list[str], part: Path) -> None:
        """``sources``: data set and split, number of the shard, number of shards."""
        name, number, count = sources[0], int(sources[1]), int(sources[2])
        low, high = WHOLE * number // count, WHOLE * (number + 1) // count
        found: list[tuple[bytes, bytes]] = []
        for folder in self.folders:
            found += self._range(Path(folder), name, low, high)
        found.sort(key=lambda each: each[0])
        _write(part, [line for _, line in found], self.formats)

    def _range(self, folder: Path, name: str, low: int, high: int) -> Iterator[tuple[bytes, bytes]]:
        """(place in the order, record) of the records whose turned keys lie in a range."""
        index = folder / f"{name}.npz"
        if not index.exists():
            return
        with np.load(index, allow_pickle=False) as kept:
            keys, origins, begins = kept["keys"], kept["origins"], kept["begins"]
        blend = Blend({int(o): Share(*each) for o, each in self.blends.get(name, {}).items()})
        copies = blend.copies(keys, origins)
        with open(folder / f"{name}.jsonl", "rb") as handle:
            for copy in range(int(copies.max(initial=1))):
                turn = copy * TURN % WHOLE
                turned = keys + np.uint64(turn)  # wraps
                inside = (turned >= np.uint64(low)) & (turned <= np.uint64(high - 1)) & (copies > copy)
                for place in np.flatnonzero(inside).tolist():
                    handle.seek(int(begins[place]))
                    line = handle.read(int(begins[place + 1] - begins[place]))
                    yield _place(int(keys[place]), copy, line), _copied(line, copy)


def _place(key: int, copy: int, line: bytes) -> bytes:
    """Where a record stands in its shard: by its key, for copies by another hash of it."""
    if copy == 0:
        return key.to_bytes(8, "big") + line
    return hashlib.sha256(f"{key}\0{copy}".encode()).digest()[:8] + line


def _copied(line: bytes, copy: int) -> bytes:
    if copy == 0:
        return line
    record = orjson.loads(line)
    record["id"] = f"{record['id']}@{copy + 1}"
    return bytes(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))


def _name(source: Source, index: int) -> str:
    return source.name or f"curate.sources.{index}"


def _write(part: Path, lines: list[bytes], formats: str) -> None:
    if formats.startswith("jsonl"):
        with open(part / "records.jsonl", "wb") as handle:
            handle.writelines(lines)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = ("id", "text", "name", "source", "language")
    rows = [orjson.loads(line) for line in lines]
    table = pa.table({name: pa.array([row.get(name) for row in rows], pa.string()) for name in columns})
    pq.write_table(table, part / "records.parquet", compression="zstd")
