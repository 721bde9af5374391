"""Readers: the files of every kind of source as a stream of documents.

A reader yields, for each record of a file in order, one of

* :class:`Document`: its text and what is known of it;
* :class:`Dropped`: a record that was read well and holds no document (an empty text, a page
  without main text); it counts as a raw document, dropped here and for this reason;
* :class:`Fault`: a record that cannot be read; it goes to quarantine.

Nothing is passed over in silence, and a broken file costs only what is broken: reading
goes on behind it wherever the format allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.documents import Unit, is_remote
from pipeline.schema import Source

EMPTY, EMPTY_FILE = "the text is empty", "the file is empty"
MAY_BE_EMPTY = ("jsonl", "csv", "text", "html")  # an empty file of these holds nothing and lacks nothing


@dataclass(frozen=True)
class Document:
    """A raw document; ``place`` is the number of its line or record in the file, from 1.

    ``unused`` are the fields of its record that say something and are not read.
    """

    place: int
    text: str
    name: str = ""
    kind: str = "document"
    arguments: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Dropped:
    """A record without a document in it."""

    place: int
    reason: str


@dataclass(frozen=True)
class Fault:
    """A record that cannot be read; ``place`` 0 is the file itself."""

    place: int
    reason: str


Read = Document | Dropped | Fault
Reader = Callable[[Unit, Source, int], Iterator[Read]]


def read_unit(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """Everything in one file of a source; records over ``max_bytes`` are faults."""
    fault = _no_file(unit.path)
    if fault:
        empty = fault == EMPTY_FILE and source.kind in MAY_BE_EMPTY
        yield Dropped(0, fault) if empty else Fault(0, fault)
        return
    documents = 0
    for found in _reader(source.kind)(unit, source, max_bytes):
        if isinstance(found, Document):
            found = checked(found)
        if isinstance(found, Document):
            documents += 1
        yield found
        if source.max_documents and documents >= source.max_documents:
            return


def checked(document: Document) -> Document | Dropped | Fault:
    """The document, or what is wrong with its text."""
    if not document.text.strip():
        return Dropped(document.place, EMPTY)
    if "\0" in document.text:
        return Fault(document.place, "the text holds NUL characters")
    return document


def _reader(kind: str) -> Reader:
    from pipeline.stages.curate.readers import columns, lines, pages, tables, wikipedia

    return {
        "jsonl": lines.read_json,
        "json": lines.read_json,
        "csv": columns.read_csv,
        "parquet": tables.read_parquet,
        "dataset": tables.read_arrow,
        "text": pages.read_text,
        "html": pages.read_html,
        "warc": pages.read_warc,
        "wet": pages.read_wet,
        "wikipedia": wikipedia.read_dump,
    }[kind]


def _no_file(path: str) -> str | None:
    if is_remote(path):
        return None
    local = Path(path)
    if local.is_dir():
        return "is a folder, not a file"
    if not local.exists():
        if "\\x" in path:  # as pipeline.documents writes bytes that are no UTF-8
            return "its name is not UTF-8; rename it"
        return "is a link to nothing" if local.is_symlink() else "is gone"
    if not local.is_file():
        return "is not a regular file"
    if local.stat().st_size == 0:
        return EMPTY_FILE
    return None
