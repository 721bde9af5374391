"""JSON: one object a line (JSONL), or one array of objects, plain or packed (.gz, .zst, .bz2).

Which of the two a file is shows its beginning, not its name.  A file that is neither is
told in one sentence, not line by line.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any

import orjson

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.fields import NOTHING
from pipeline.stages.curate.readers import EMPTY, Document, Dropped, Fault, Read
from pipeline.stages.curate.readers.streams import (
    Broken,
    as_utf8,
    bounded_lines,
    open_binary,
    peeked,
    unpacked,
)

HEAD = 1 << 16  # bytes that the form of a file is told by
STRUCTURE = re.compile(rb'["\[\]{}\n]')
TEXT_END = re.compile(rb'["\\\n]')
VALUE = re.compile(rb"[^\s,]")
VALUE_END = re.compile(rb"[,\n\]]")
FORMATS = (  # how other formats begin
    (b"PAR1", "Parquet"),
    (b"ARROW1", "an Arrow file"),
    (b"\x1f\x8b", "gzip data (name it *.gz)"),
    (b"\x28\xb5\x2f\xfd", "zstd data (name it *.zst)"),
    (b"BZh", "bzip2 data (name it *.bz2)"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet"),
    (b"%PDF", "PDF"),
    (b"version https://git-lfs", "a Git LFS pointer and not the data (git lfs pull)"),
    (b"<", "XML or HTML"),
)

Record = tuple[int, dict[str, Any]]


def read_objects(path: str, max_bytes: int, encoding: str | None = None) -> Iterator[Record | Fault]:
    """The (line number, object) pairs of a JSONL file or of a JSON array.

    A :class:`Fault` stands for what is none; in an array, the line is that on which the element begins.
    """
    number = 0
    try:
        with open_binary(path) as handle:
            head, chunks = peeked(as_utf8(unpacked(handle, path), encoding), HEAD)
            wrong = _no_json(head)
            if wrong is not None:
                yield Fault(0, wrong)
                return
            array = _is_array(head)
            pieces = elements(chunks, max_bytes) if array else bounded_lines(chunks, max_bytes)
            for number, piece in pieces:
                if piece is None:
                    what = "record" if array else "line"
                    yield Fault(
                        number, f"the {what} is longer than {max_bytes:,} bytes (curate.max_record_mb)"
                    )
                elif piece.strip():
                    record, reason = parsed(piece)
                    yield Fault(number, reason) if record is None else (number, record)
    except Broken as error:
        yield Fault(number + 1, f"{error}; nothing behind this line was read")


def _is_array(head: bytes) -> bool:
    """Whether the file is an array, or objects over several lines, and not JSONL."""
    start = head.lstrip()
    if start[:1] == b"[":
        return start[1:].lstrip()[:1] in (b"{", b"]", b"")
    first = start.split(b"\n", 1)[0]
    if start[:1] != b"{" or parsed(first)[0] is not None or b"\n" not in start:
        return False
    # An object over several lines: a key, and nothing but a key, begins its second line.
    return re.match(rb'\{\s*("([^"\\\n]|\\.)*"\s*:.*)?,?\s*\n\s*["}]', start) is not None


def _no_json(head: bytes) -> str | None:
    """What the file is instead of JSON, in a sentence; None where one line at least may be an object."""
    for begins, name in FORMATS:
        if head.lstrip().startswith(begins):
            return f"is not JSON but {name}"
    lines = [line for line in head.split(b"\n") if line.strip()]
    if not lines or any(line.lstrip()[:1] in b"[{" for line in lines):
        return None
    shown = lines[0].decode("utf-8", "replace").strip()
    shown = "".join(char if char.isprintable() else "?" for char in shown[:40])
    return f"is not JSON: no line begins with {{ or [, the first is {shown!r} (another kind of source? csv, text)"


def elements(chunks: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(line, bytes) of every element of an array, or of objects that follow each other.

    None stands for an element of more than ``max_bytes``.  Raises :class:`Broken` where the data
    end in the middle of an element, or an array is not closed.
    """
    splitter = _Splitter(max_bytes)
    for chunk in chunks:
        yield from splitter.feed(chunk)
    if splitter.inside or (splitter.array and not splitter.ended):
        raise Broken("the file ends in the middle of its JSON")


class _Splitter:
    """Finds where elements begin and end; holds one element at most, and looks at every byte once.

    A line's end closes a text, as JSON writes it ``\\n`` in one: a quotation mark too many or too
    few then costs an element and not the rest of the file, where the braces still match.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.line = self.begun = 1
        self.depth = self.size = 0
        self.held: list[bytes] = []
        self.array: bool | None = None  # None before the first character
        self.inside = self.ended = self.in_text = self.escaped = False

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The elements that end in this piece of the file."""
        place = 0
        while place < len(chunk):
            place = yield from (self._element if self.inside else self._between)(chunk, place)

    def _between(self, chunk: bytes, place: int) -> Generator[tuple[int, bytes | None], None, int]:
        found = VALUE.search(chunk, place)
        stop = found.start() if found else len(chunk)
        self.line += chunk.count(b"\n", place, stop)
        if found is None:
            return stop
        if self.array is None:
            self.array = found[0] == b"["
            if self.array:
                return stop + 1
        if self.array and found[0] == b"]":
            self.ended = True
            return stop + 1
        if found[0] in (b"{", b"["):
            self.inside, self.begun = True, self.line
            return stop
        end = VALUE_END.search(chunk, stop + 1)  # a number or a word; it is no object in any case
        place = end.start() if end else len(chunk)
        yield self.line, chunk[stop:place][:200]
        return place

    def _element(self, chunk: bytes, place: int) -> Generator[tuple[int, bytes | None], None, int]:
        start = place
        while place < len(chunk):
            if self.escaped:
                self.escaped, place = False, place + 1
                continue
            found = (TEXT_END if self.in_text else STRUCTURE).search(chunk, place)
            if found is None:
                break
            char, place = found[0], found.end()
            if char == b"\n":
                self.line += 1
                self.in_text = False
            elif char == b"\\":
                self.escaped = True
            elif char == b'"':
                self.in_text = not self.in_text
            else:
                self.depth += 1 if char in (b"[", b"{") else -1
            if self.depth == 0 and not self.in_text and char in (b"]", b"}"):
                self._keep(chunk[start:place])
                yield self.begun, None if self.size > self.max_bytes else b"".join(self.held)
                self.inside, self.held, self.size = False, [], 0
                return place
        self._keep(chunk[start:])
        return len(chunk)

    def _keep(self, part: bytes) -> None:
        self.size += len(part)
        if self.size > self.max_bytes:
            self.held = []
        else:
            self.held.append(part)


def parsed(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The object of a line, or None and what is wrong with it."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        try:
            line.decode("utf-8")
        except UnicodeDecodeError:
            return None, "not UTF-8"
        return None, f"not JSON: {str(error).splitlines()[0]}"
    if not isinstance(record, dict):
        return None, f"expected an object, found a {type(record).__name__}"
    return record, ""


def read_json(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The documents of a JSONL file or of a JSON array."""
    for found in read_objects(unit.path, max_bytes, source.encoding):
        if isinstance(found, Fault):
            yield found
        else:
            yield from_record(found[0], found[1], source)


def used_fields(source: Source) -> list[str]:
    """The fields of a record that a source asks for."""
    every = (
        source.text_field,
        source.title_field,
        source.id_field,
        source.score_field,
        source.embedding_field,
    )
    return [name for name in every if name]


def from_record(place: int, record: dict[str, Any], source: Source) -> Document | Dropped | Fault:
    """A document out of a record's fields, as the source names them."""
    text = record.get(source.text_field)
    if not isinstance(text, str):
        if source.text_field not in record:
            return Fault(
                place, f"has no field {source.text_field!r} (it has {', '.join(list(record)[:8]) or 'none'})"
            )
        if text is None:
            return Dropped(place, EMPTY)
        return Fault(place, f"field {source.text_field!r} is {type(text).__name__}, not text")
    if not text.strip():
        return Dropped(place, EMPTY)
    title = record.get(source.title_field)
    extra: dict[str, Any] = {}
    if source.id_field is not None:
        identifier = record.get(source.id_field)
        if isinstance(identifier, bool) or not isinstance(identifier, str | int) or identifier == "":
            return Fault(place, f"field {source.id_field!r} is missing or no id")
        extra["id"] = str(identifier)
    if source.score_field is not None:
        score = record.get(source.score_field)
        if isinstance(score, bool) or not isinstance(score, int | float):
            return Fault(place, f"field {source.score_field!r} is missing or not a number")
        extra["score"] = float(score)
    if source.embedding_field is not None:
        vector = record.get(source.embedding_field)
        if not isinstance(vector, list) or not vector or not all(isinstance(x, int | float) for x in vector):
            return Fault(place, f"field {source.embedding_field!r} is no list of numbers")
        extra["embedding"] = vector
    used = used_fields(source)
    unused = tuple(name for name, value in record.items() if name not in used and value not in NOTHING)
    name = title.strip() if isinstance(title, str) else ""
    if title is not None and not isinstance(title, str):
        unused += (source.title_field,)
    return Document(place, text, name, extra=extra, unused=unused)
