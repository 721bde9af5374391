"""Which files a source of documents consists of; the controller and curation must agree."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.schema import Source

PACKED = {
    "jsonl": ("", ".gz", ".zst", ".bz2"),
    "warc": ("", ".gz"),
    "wet": ("", ".gz"),
    "wikipedia": ("", ".bz2"),
}
SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson"),
    "parquet": (".parquet",),
    "text": (".txt", ".md", ".markdown", ".rst"),
    "html": (".html", ".htm"),
    "warc": (".warc",),
    "wet": (".wet",),
    "wikipedia": (".xml",),
    "dataset": (".arrow",),
}


@dataclass(frozen=True)
class Unit:
    """One file of a source: ``name`` is relative to the source's folder, ``path`` where it lies.

    Both are text: bytes of a file name that are not UTF-8 are escaped (``\\xff``), so such a
    file is not found at its path, and is put down as unreadable.
    """

    name: str
    path: str


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec address (``s3://...``) and not a local one."""
    return "://" in path


def suffixes(kind: str) -> list[str]:
    """The ends of the file names that a source of this kind reads."""
    return [plain + packed for plain in SUFFIXES[kind] for packed in PACKED.get(kind, ("",))]


def belongs(kind: str, name: str) -> bool:
    """Whether a file of this name is read by a source of this kind."""
    return name.lower().endswith(tuple(suffixes(kind)))


def local_units(source: Source) -> list[Unit]:
    """The files of a local source, in a fixed order.

    Something else under a fitting name (a folder without fitting files, a link to nothing)
    is listed too: curation puts it down as unreadable instead of passing it over.
    """
    root = Path(str(source.path))
    if root.is_file():
        return [Unit(_plain(root.name), str(root))]
    fitting = [p for p in _walk(root) if belongs(source.kind, p.name)]
    parents = {parent for p in fitting if not p.is_dir() for parent in p.parents}
    found = [p for p in fitting if not (p.is_dir() and p in parents)]
    return [Unit(_plain(p.relative_to(root).as_posix()), _plain(str(p))) for p in found]


def passed_over(source: Source) -> Counter[str]:
    """The files of a local folder that a source of this kind does not read, by the end of their names."""
    root = Path(str(source.path))
    if not root.is_dir():
        return Counter()
    return Counter(
        _plain(p.suffix.lower()) or "no ending"
        for p in _walk(root)
        if not belongs(source.kind, p.name) and p.is_file()
    )


def _walk(root: Path) -> Iterator[Path]:
    """Everything below a folder in a fixed order; linked folders too, unless they lead back up."""
    pending: list[tuple[Path, frozenset[str]]] = [(root, frozenset([os.path.realpath(root)]))]
    found = []
    while pending:
        folder, above = pending.pop()
        for entry in folder.iterdir():
            found.append(entry)
            real = os.path.realpath(entry)
            if entry.is_dir() and not any(each == real or each.startswith(f"{real}/") for each in above):
                pending.append((entry, above | {real}))
    return iter(sorted(found))


def _plain(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "backslashreplace")
