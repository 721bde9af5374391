"""Reading: the files of all sources into shards of raw documents, group by group of files.

A group is some small files or one large one; it is the unit of resuming.  How files are
grouped depends on the files alone, never on the number of workers.  Every document gets a
``number`` that gives its place among all documents, and an ``id`` that does not depend on
how many others there are.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from pipeline.documents import Unit, is_remote, local_units
from pipeline.errors import UserError
from pipeline.schema import Curate, Source, from_plain
from pipeline.stages.curate.fields import count_names
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.curate.readers import Document, Dropped, Fault, Read, read_unit
from pipeline.stages.curate.shards import (
    DOCUMENTS,
    SHARD,
    SHARD_BYTES,
    FolderWork,
    bucket,
    read_rows,
    write_rows,
    write_shard,
)
from pipeline.stages.step import InputError

GROUP_BYTES = 32 << 20
GROUP_FILES = 400
GROUP_BITS, ROW_BITS, PIECE_BITS = 23, 32, 8  # of a document's number
SHOWN_REASONS = 5
QUARANTINE, READ = "quarantine.jsonl", "read.json"


@dataclass(frozen=True)
class Group:
    """Files of one source that are read together; ``package`` where they are a package's."""

    source: int
    units: tuple[Unit, ...]
    package: str | None = None


def groups(curate: Curate) -> list[Group]:
    """All groups of a recipe, in order.  Raises :class:`InputError` for a package that is not there."""
    found: list[Group] = []
    for index, source in enumerate(curate.sources):
        if source.kind == "python-docs":
            for package in source.packages:
                modules = [Unit(module, str(file)) for module, file in package_sources(package)]
                found += [Group(index, part, package) for part in _grouped(modules)]
        elif is_remote(str(source.path)):
            from pipeline.stages.remote_files import remote_units

            found += [Group(index, part) for part in _grouped([unit for unit, _, _ in remote_units(source)])]
        else:
            try:
                found += [Group(index, part) for part in _grouped(local_units(source))]
            except UserError as error:
                raise InputError(str(error)) from None
    return found


def _grouped(units: list[Unit]) -> Iterator[tuple[Unit, ...]]:
    part: list[Unit] = []
    size = 0
    for unit in units:
        weight = GROUP_BYTES if is_remote(unit.path) else _size(unit.path)
        if part and (size + weight > GROUP_BYTES or len(part) == GROUP_FILES):
            yield tuple(part)
            part, size = [], 0
        part.append(unit)
        size += weight
    if part:
        yield tuple(part)


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def write_plan(plan: list[Group], path: Path) -> None:
    """Write the groups for the workers."""
    path.write_bytes(orjson.dumps([asdict(group) for group in plan]))


class ReadGroup(FolderWork):
    """Make a folder of raw shards (``000/``, ``001/``, ...) out of the group of this number."""

    def __init__(self, plan: Path, sources: list[Source], max_bytes: int) -> None:
        self.name = "read"
        self.plan, self.max_bytes = str(plan), max_bytes
        self.sources = [asdict(source) for source in sources]

    def needs(self, sources: list[str]) -> list[Path]:
        """Nothing of earlier work: the sources lie outside."""
        return []

    def make(self, sources: list[str], part: Path) -> None:
        """``sources`` is the group's number."""
        number = int(sources[0])
        plain = orjson.loads(Path(self.plan).read_bytes())[number]
        group = Group(plain["source"], tuple(Unit(**unit) for unit in plain["units"]), plain["package"])
        source = from_plain(Source, self.sources[group.source])
        writer = _Writer(part, number, group, source, len(self.sources) > 1)
        for unit in group.units:
            role = f"sources.{group.source}/{group.package or unit.name}"
            if group.package is None:
                found: Iterable[Read] = read_unit(unit, source, self.max_bytes)
            else:
                found = _docstrings(unit, group.package)
            for read in found:
                writer.take(role, unit, read)
        writer.close()


def _docstrings(unit: Unit, package: str) -> Iterator[Document]:
    for place, plain in enumerate(read_docstrings(unit.name, Path(unit.path), package), start=1):
        yield Document(place, plain["text"], plain["name"], plain["kind"], tuple(plain["arguments"]))


@dataclass(frozen=True)
class Identifiers:
    """Hashes of the documents' ids, to tell ids that are not unique."""

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """``ids``: ``uint64 [documents]``."""
        digests = b"".join(hashlib.sha256(row["id"].encode()).digest()[:8] for row in rows)
        return {"ids": np.frombuffer(digests, dtype=np.uint64)}


def check_unique(shards: list[Path], memory_mb: int) -> None:
    """Raise :class:`InputError` where two documents have one id; holds a part of all hashes at a time."""
    parts = max(
        1,
        -(-sum(len(np.load(shard / "ids.npy", mmap_mode="r")) for shard in shards) * 32 // (memory_mb << 20)),
    )
    for part in range(parts):
        hashes = [np.load(shard / "ids.npy", allow_pickle=False) for shard in shards]
        mine = np.concatenate([each[each % np.uint64(parts) == part] for each in hashes])
        values, counts = np.unique(mine, return_counts=True)
        if (counts > 1).any():
            repeated = set(values[counts > 1][:1].tolist())
            raise InputError(
                f"curate.sources: the id {_id_of(shards, repeated)!r} belongs to more than one document "
                f"({int((counts > 1).sum()):,} ids do); id_field needs a field that is unique, or leave it out"
            )


def _id_of(shards: list[Path], wanted: set[int]) -> str:
    for shard in shards:
        places = np.flatnonzero(np.isin(np.load(shard / "ids.npy", allow_pickle=False), list(wanted)))
        if len(places):
            return str(next(islice(read_rows(shard / DOCUMENTS), int(places[0]), None))["id"])
    return ""


class _Writer:
    """The shards of one group while they are written; holds one shard at most."""

    def __init__(self, folder: Path, number: int, group: Group, source: Source, several: bool) -> None:
        self.folder, self.group, self.source, self.several = folder, group, source, several
        self.base = number << (ROW_BITS + PIECE_BITS)
        self.rows: list[dict[str, Any]] = []
        self.bytes = self.row = self.shard = 0
        self.names: Counter[str] = Counter()
        self.inputs: dict[str, Counter[str]] = {}
        self.dropped: Counter[str] = Counter()
        self.lengths: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.unused: Counter[str] = Counter()

    def take(self, role: str, unit: Unit, read: Read) -> None:
        counts = self.inputs.setdefault(role, Counter())
        if isinstance(read, Fault):
            counts["unreadable"] += 1
            self.faults.append({"input": role, "file": unit.path, "line": read.place, "reason": read.reason})
            return
        counts["records"] += 1
        if isinstance(read, Dropped):
            self.dropped[read.reason] += 1
            return
        self._document(unit, read)

    def _document(self, unit: Unit, read: Document) -> None:
        count_names(read.unused, self.unused)
        text, name = (value.encode("utf-8", "replace").decode("utf-8") for value in (read.text, read.name))
        self.rows.append(
            {
                "number": self.base + (self.row << PIECE_BITS),
                "id": self._identifier(unit, read),
                "name": name,
                "kind": read.kind,
                "source": self.group.package or self.source.name or unit.name.rsplit("/", 1)[-1],
                "origin": self.group.source,
                "text": text,
                "arguments": list(read.arguments),
                **{name: value for name, value in read.extra.items() if name != "id"},
            }
        )
        self.row += 1
        self.bytes += len(text)
        self.lengths[str(bucket(len(text)))] += 1
        if len(self.rows) >= SHARD or self.bytes >= SHARD_BYTES:
            self._flush()

    def _identifier(self, unit: Unit, read: Document) -> str:
        if self.group.package is not None:
            # A name may be defined twice in one module (overloads, setters).
            self.names[read.name] += 1
            again = self.names[read.name]
            return read.name if again == 1 else f"{read.name}#{again}"
        prefix = f"{self.group.source}/" if self.several else ""
        return f"{prefix}{read.extra.get('id') or f'{unit.name}:{read.place}'}"

    def _flush(self) -> None:
        shard = self.folder / f"{self.shard:04d}"
        shard.mkdir()
        write_shard(shard, self.rows, {"left": len(self.rows)}, (Identifiers(),))
        self.rows, self.bytes, self.shard = [], 0, self.shard + 1

    def close(self) -> None:
        if self.rows:
            self._flush()
        write_rows(self.folder / QUARANTINE, self.faults)
        (self.folder / READ).write_bytes(
            orjson.dumps(
                {
                    "inputs": self.inputs,
                    "dropped": self.dropped,
                    "lengths": self.lengths,
                    "unused": {str(self.group.source): self.unused},
                    "documents": {str(self.group.source): self.row},
                },
                option=orjson.OPT_SORT_KEYS,
            )
        )


@dataclass
class Reading:
    """What reading gave: raw shards in order, and the account of it."""

    shards: list[Path]
    inputs: dict[str, dict[str, int]]
    dropped: Counter[str]
    folders: list[Path]
    lengths: Counter[str]
    documents: Counter[int]  # by source
    unused: dict[str, Counter[str]]  # fields that are not read, by source

    @property
    def unreadable(self) -> int:
        """Records that could not be read."""
        return sum(counts["unreadable"] for counts in self.inputs.values())

    def faults(self) -> Iterator[dict[str, Any]]:
        """The unreadable records, in order."""
        for folder in self.folders:
            yield from read_rows(folder / QUARANTINE)

    def check(self, max_share: float) -> None:
        """Raise :class:`InputError` when more than ``max_share`` of the records were bad."""
        total = self.unreadable + sum(counts["records"] for counts in self.inputs.values())
        check_share(self.faults(), total, max_share, self.unreadable)


def check_share(
    faults: Iterable[dict[str, Any]], total: int, max_share: float, count: int | None = None
) -> None:
    """Raise :class:`InputError` when more than ``max_share`` of ``total`` records are faulty."""
    if count is None:
        faults = list(faults)
        count = len(faults)
    if not total or count / total <= max_share:
        return
    shown = []
    for fault in islice(faults, SHOWN_REASONS):
        place = f":{fault['line']}" if fault["line"] else ""
        shown.append(f"  {fault['file']}{place}: {fault['reason']}")
    raise InputError(
        f"{count:,} of {total:,} input records cannot be read, more than "
        f"curate.max_bad_share = {max_share:g} allows; the first of them:\n" + "\n".join(shown) + "\n"
        "Mend the files, or raise curate.max_bad_share"
    )


def account(folders: list[Path]) -> Reading:
    """Put the folders of all groups together."""
    inputs: dict[str, dict[str, int]] = {}
    dropped: Counter[str] = Counter()
    shards: list[Path] = []
    lengths: Counter[str] = Counter()
    documents: Counter[int] = Counter()
    unused: dict[str, Counter[str]] = {}
    for folder in folders:
        kept = json.loads((folder / READ).read_bytes())
        for role, counts in kept["inputs"].items():
            sums = inputs.setdefault(role, {"records": 0, "unreadable": 0})
            for name, count in counts.items():
                sums[name] += count
        dropped.update(kept["dropped"])
        lengths.update(kept["lengths"])
        documents.update({int(source): count for source, count in kept["documents"].items()})
        for source, names in kept["unused"].items():
            unused.setdefault(f"sources.{source}", Counter()).update(names)
        shards += sorted(path for path in folder.iterdir() if path.is_dir())
    return Reading(shards, dict(sorted(inputs.items())), dropped, folders, lengths, documents, unused)
