"""CSV and TSV, plain or packed: quoted fields over several lines, ragged rows told by line.

The first row names the columns.  The separator is the tab for ``.tsv``, else the one of comma,
semicolon, tab and bar that splits the first row into most columns (``sep=;`` in front, as Excel
writes it, is heeded).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Fault, Read
from pipeline.stages.curate.readers.lines import FORMATS, Record, from_record
from pipeline.stages.curate.readers.streams import (
    Broken,
    as_utf8,
    bounded_lines,
    open_binary,
    peeked,
    unpacked,
    words_of,
)

SEPARATORS = ",;\t|"
HEAD = 1 << 16
REREAD = 16  # so many open quotation marks; each can cost reading a record's length once more
NESTED = ("messages", "conversations", "history", "responses", "scores", "attributes")  # never text
TEXT_OR_TURNS = ("prompt", "chosen", "rejected")  # as text they may be JSON for its own sake


def read_csv(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The documents of a table."""
    for found in read_rows(unit.path, max_bytes, source.encoding, source.text_field):
        if isinstance(found, Fault):
            yield found
            continue
        place, record = found
        score, vector = source.score_field or "", source.embedding_field or ""
        with suppress(ValueError):  # from_record says that it is none
            if score in record:
                record[score] = float(record[score])
            if vector in record:
                record[vector] = orjson.loads(record[vector])
        yield from_record(place, record, source)


def read_nested(path: str, max_bytes: int) -> Iterator[Record | Fault]:
    """The rows of a table of chats or pairs; turns and the like are written in it as JSON."""
    for found in read_rows(path, max_bytes, other="save the file as UTF-8"):
        if not isinstance(found, Fault):
            for name in (*NESTED, *TEXT_OR_TURNS):
                value = found[1].get(name)
                if isinstance(value, str) and value[:1] in ("[", "{"):
                    with suppress(orjson.JSONDecodeError):  # a text that begins like this
                        read = orjson.loads(value)
                        if name in NESTED or _turns(read):
                            found[1][name] = read
        yield found


def _turns(value: Any) -> bool:
    """Whether a value is turns of a conversation, by the names that they have in it."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(turn, dict) and ("role" in turn or {"from", "value"} <= turn.keys()) for turn in value
        )
    )


def read_rows(
    path: str,
    max_bytes: int,
    encoding: str | None = None,
    needed: str | None = None,
    other: str = "set the source's encoding",
) -> Iterator[Record | Fault]:
    """(line on which it begins, fields by column) of every row; a :class:`Fault` for what is none.

    ``needed`` is a column without which the file is of no use; ``other`` what to do about another character set.
    """
    place = 0
    csv.field_size_limit(max_bytes)
    try:
        with open_binary(path) as handle:
            head, chunks = peeked(as_utf8(unpacked(handle, path), encoding), HEAD)
            wrong = next((name for begins, name in FORMATS if head.startswith(begins)), None)
            if wrong is not None:
                yield Fault(0, f"is not CSV but {wrong}")
                return
            lines = _Lines(bounded_lines(chunks, max_bytes), max_bytes, other)
            columns: list[str] | None = None
            for place, row in _rows(lines, _separator(path, head)):
                if isinstance(row, Fault):
                    yield row
                elif not row or (columns is None and row[0].startswith("sep=") and len("".join(row)) < 6):
                    continue
                elif columns is None:
                    columns = [name.strip() for name in row]
                    wrong = _header_fault(columns, needed)
                    if wrong is not None:
                        yield Fault(0, wrong)
                        return
                elif len(row) != len(columns):
                    yield Fault(place, f"has {len(row)} fields, and the first row names {len(columns)}")
                else:
                    yield place, {name: value for name, value in zip(columns, row, strict=True) if name}
    except Broken as error:
        yield Fault(place + 1, f"{error}; nothing behind this line was read")


def _header_fault(columns: list[str], needed: str | None) -> str | None:
    named = [name for name in columns if name]
    twice = sorted({name for name in named if named.count(name) > 1})
    shown = ", ".join(named[:20])
    if twice:
        return f"has the column {twice[0]!r} more than once"
    if needed is not None and needed not in named:
        return f"has no column {needed!r}; its first row names {shown or 'none'} (set text_field)"
    return None


def _separator(path: str, head: bytes) -> str:
    names = Path(path).name.lower()
    if ".tsv" in names:
        return "\t"
    lines = head.decode("utf-8", "replace").splitlines() or [""]
    if lines[0].startswith("sep=") and len(lines[0]) == 5:
        return lines[0][4]
    return max(SEPARATORS, key=lambda sep: len(next(csv.reader(lines[:1], delimiter=sep), [])))


class _Lines:
    """The lines of a table for ``csv``, which takes as many as a record has; they can be taken back."""

    def __init__(self, lines: Iterator[tuple[int, bytes | None]], max_bytes: int, other: str) -> None:
        self.lines, self.max_bytes, self.other = lines, max_bytes, other
        self.taken: list[tuple[int, bytes | None]] = []  # of the record that is being read
        self.again: list[tuple[int, bytes | None]] = []  # taken back, the last first
        self.size = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        numbered = self.again.pop() if self.again else next(self.lines)
        self.taken.append(numbered)
        line = numbered[1]
        if line is None:
            raise _Bad(f"the line is longer than {self.max_bytes:,} bytes (curate.max_record_mb)")
        self.size += len(line) + 1
        if self.size > self.max_bytes:
            raise _Bad(
                f"the row is longer than {self.max_bytes:,} bytes (curate.max_record_mb); "
                "is a quotation mark left open?"
            )
        try:
            return line.decode("utf-8") + "\n"
        except UnicodeDecodeError:
            raise _Bad(f"not UTF-8 ({self.other})") from None

    def begin(self) -> None:
        """A new record begins with the next line."""
        self.taken, self.size = [], 0

    def back(self) -> None:
        """All lines of this record but the first will be given once more."""
        self.again += reversed(self.taken[1:])
        self.begin()


class _Bad(Exception):
    """The record cannot be read."""


def _rows(lines: _Lines, separator: str) -> Iterator[tuple[int, Any]]:
    """(line, fields or :class:`Fault`) of every row; a faulty one costs its first line."""
    reread = 0
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        lines.begin()
        try:
            row = next(reader)
        except StopIteration:
            return
        except (csv.Error, _Bad) as error:
            first, several = lines.taken[0][0], len(lines.taken) > 1
            reread += several
            if reread > REREAD:
                yield first, Fault(first, f"{REREAD} rows were not closed; nothing behind this line was read")
                return
            reason = words_of(error)
            if "unexpected end of data" in reason:
                reason = "a quotation mark is left open"
            yield first, Fault(first, reason if isinstance(error, _Bad) else f"not CSV: {reason}")
            lines.back()
            reader = csv.reader(lines, delimiter=separator, strict=True)
            continue
        yield lines.taken[0][0], row
