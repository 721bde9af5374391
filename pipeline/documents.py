"""Which files a source of documents consists of; the controller and curation must agree."""

from __future__ import annotations

from pathlib import Path

from pipeline.schema import Source

SUFFIXES = {"jsonl": (".jsonl",), "text": (".txt", ".md")}


def named_files(source: Source) -> list[tuple[Path, str]]:
    """The files of a source, each with its name relative to the source's folder."""
    root = Path(str(source.path))
    return [
        (file, file.name if root.is_file() else file.relative_to(root).as_posix())
        for file in source_files(source)
    ]


def source_files(source: Source) -> list[Path]:
    """The files of a ``jsonl`` or ``text`` source, in a fixed order."""
    path = Path(str(source.path))
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES[source.kind])
