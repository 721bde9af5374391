"""JSONL: one JSON object a line, plain or packed (.gz, .zst, .bz2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Fault, Read
from pipeline.stages.curate.readers.streams import Broken, bounded_lines, open_binary, unpacked


def read_objects(path: str, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    """The (line number, object) pairs of a JSONL file; a :class:`Fault` for what is none."""
    number = 0
    try:
        with open_binary(path) as handle:
            for number, line in bounded_lines(unpacked(handle, path), max_bytes):
                if line is None:
                    yield Fault(number, f"the line is longer than {max_bytes:,} bytes (curate.max_record_mb)")
                    continue
                if not line.strip():
                    continue
                record, reason = parsed(line)
                yield Fault(number, reason) if record is None else (number, record)
    except Broken as error:
        yield Fault(number + 1, f"{error}; nothing behind this line was read")


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


def read_jsonl(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The documents of a JSONL file."""
    for found in read_objects(unit.path, max_bytes):
        if isinstance(found, Fault):
            yield found
        else:
            yield from_record(found[0], found[1], source)


def from_record(place: int, record: dict[str, Any], source: Source) -> Document | Fault:
    """A document out of a record's fields, as the source names them."""
    text = record.get(source.text_field)
    if not isinstance(text, str):
        if source.text_field not in record:
            return Fault(
                place, f"has no field {source.text_field!r} (it has {', '.join(list(record)[:8]) or 'none'})"
            )
        return Fault(place, f"field {source.text_field!r} is {type(text).__name__}, not text")
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
    return Document(place, text, title.strip() if isinstance(title, str) else "", extra=extra)
