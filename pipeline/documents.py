"""Which files a source of documents consists of; the controller and curation must agree."""

from __future__ import annotations

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
    """One file of a source: ``name`` is relative to the source's folder, ``path`` where it lies."""

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
        return [Unit(root.name, str(root))]
    fitting = [p for p in sorted(root.rglob("*")) if belongs(source.kind, p.name)]
    parents = {parent for p in fitting if not p.is_dir() for parent in p.parents}
    return [
        Unit(p.relative_to(root).as_posix(), str(p)) for p in fitting if not (p.is_dir() and p in parents)
    ]
