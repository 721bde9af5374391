"""Which files a source of documents consists of; the controller and curation must agree."""

from __future__ import annotations

from pathlib import Path

from pipeline.schema import Source

SUFFIXES = {"jsonl": (".jsonl",), "text": (".txt", ".md")}


def source_files(source: Source) -> list[Path]:
    """The files of a ``jsonl`` or ``text`` source, in a fixed order."""
    path = Path(str(source.path))
    if path.is_file():
        return [path]
    return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in SUFFIXES[source.kind])
