"""The records of a WARC file, read within bounds whatever a header says.

ISO 28500: a version line, header fields, an empty line, ``Content-Length`` bytes, two line ends.
A length or a header that cannot be right costs its record: reading goes on where the next
one begins.  Nothing longer than a record may be is ever held.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.stages.curate.readers import Fault
from pipeline.stages.curate.readers.streams import Broken, open_binary, unpacked

RECORD_END = b"\r\n\r\n"
NEXT = b"\r\n\r\nWARC/1."  # how the end of one and the beginning of the next record look
HEAD_END = re.compile(rb"\r?\n\r?\n")
MISTAKEN = 16  # lengths that were wrong, until no length is trusted: each may cost reading it again


@dataclass(frozen=True)
class Record:
    """A whole record: its header fields by lower-case name, and its block."""

    place: int
    fields: dict[str, str]
    block: bytes


def read_records(path: str, max_bytes: int) -> Iterator[Record | Fault]:
    """Every record of a file in order, and a :class:`Fault` for each that cannot be read."""
    with open_binary(path) as handle:
        # Unpacked by ours: a gzip file that was cut short is told.
        stream = _Stream(unpacked(handle, path))
        place = 0
        try:
            if not stream.more():
                yield Fault(0, "not a WARC file")
                return
            if not stream.held.lstrip().startswith(b"WARC/"):
                arc = stream.held.startswith(b"filedesc:")
                yield Fault(0, "an ARC file, not WARC" if arc else "not a WARC file")
                return
            wrong = 0
            while stream.skip_blank():
                place += 1
                found = _record(stream, place, max_bytes, trusted=wrong < MISTAKEN)
                if isinstance(found, Fault):
                    wrong += 1
                    found = _resumed(stream, found)
                else:
                    stream.more()  # what is broken shows behind the record that it belongs to
                yield found
        except Broken as error:
            yield Fault(max(1, place), f"not a whole WARC record: {error}; nothing behind it was read")


def _resumed(stream: _Stream, fault: Fault) -> Fault:
    if stream.drop_until(NEXT):
        return fault
    return Fault(fault.place, f"{fault.reason}; nothing behind it was read")


def _record(stream: _Stream, place: int, max_bytes: int, *, trusted: bool) -> Record | Fault:
    """The next record; after a fault, the stream stands where the next one may be looked for."""
    head = stream.head(max_bytes)
    if head is None:
        ended = len(stream.held) <= max_bytes
        return Fault(
            place,
            "not a whole WARC record: the file ends in the middle of its header"
            if ended
            else f"its header is longer than {max_bytes:,} bytes (curate.max_record_mb)",
        )
    fields = _fields(head)
    length = fields.get("content-length", "")
    if not head.startswith(b"WARC/"):
        return Fault(place, "not a WARC record")
    if not (length.isascii() and length.isdigit() and len(length) < 20):
        return Fault(place, f"its Content-Length is {length[:40]!r}, not a number of bytes")
    if int(length) > max_bytes:
        return Fault(place, f"the record is longer than {max_bytes:,} bytes (curate.max_record_mb)")
    if not trusted:
        real = stream.distance(NEXT, max_bytes)
        if real is not None and real != int(length):
            return Fault(place, f"its Content-Length is {length}, its length {real}")
    block = stream.take(int(length))
    if stream.peek(4) == RECORD_END and len(block) == int(length):
        return Record(place, fields, block)
    stream.back(block)
    ended = len(block) < int(length) or stream.ends_within(int(length) + len(RECORD_END))
    return Fault(
        place,
        "not a whole WARC record: the file ends in the middle of it, or its Content-Length is wrong"
        if ended
        else f"its Content-Length is {length}, and it does not end there",
    )


def _fields(head: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in re.sub(rb"\r?\n[ \t]+", b" ", head).splitlines()[1:]:
        name, separator, value = line.decode("utf-8", "replace").partition(":")
        if separator:
            fields.setdefault(name.strip().lower(), value.strip())
    return fields


class _Stream:
    """Bytes that are looked for in, taken and given back; holds what a caller asks for and one chunk."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self.chunks, self.held = chunks, bytearray()

    def more(self) -> bool:
        """Have a byte at least, if there is one."""
        return bool(self.held) or self._fill()

    def _fill(self) -> bool:
        chunk = next(self.chunks, None)
        if chunk is None:
            return False
        self.held += chunk
        return True

    def skip_blank(self) -> bool:
        """Stand before the next byte that is no line end; False at the end."""
        while self.more():
            left = self.held.lstrip(b"\r\n")
            del self.held[: len(self.held) - len(left)]
            if self.held:
                return True
        return False

    def head(self, limit: int) -> bytes | None:
        """Everything before the next empty line, which goes too; None where there is none within ``limit``."""
        start = 0
        while (found := HEAD_END.search(self.held, start)) is None:
            start = max(0, len(self.held) - 3)
            if len(self.held) > limit or not self._fill():
                return None
        head = bytes(self.held[: found.start()])
        del self.held[: found.end()]
        return head

    def take(self, size: int) -> bytes:
        """So many bytes, or what is left."""
        while len(self.held) < size and self._fill():
            pass
        data = bytes(self.held[:size])
        del self.held[:size]
        return data

    def peek(self, size: int) -> bytes:
        """The next bytes, which stay."""
        while len(self.held) < size and self._fill():
            pass
        return bytes(self.held[:size])

    def back(self, data: bytes) -> None:
        """Put bytes in front again."""
        self.held[:0] = data

    def ends_within(self, size: int) -> bool:
        """Whether fewer bytes than that are left."""
        return len(self.peek(size)) < size

    def distance(self, mark: bytes, limit: int) -> int | None:
        """How far away the next mark is; None where there is none within ``limit``."""
        start = 0
        while (found := self.held.find(mark, start)) < 0:
            start = max(0, len(self.held) - len(mark))
            if len(self.held) > limit or not self._fill():
                return None
        return found

    def drop_until(self, mark: bytes) -> bool:
        """Stand before the next mark; False where there is none any more."""
        while (found := self.held.find(mark)) < 0:
            del self.held[: max(0, len(self.held) - len(mark))]
            if not self._fill():
                self.held.clear()
                return False
        del self.held[:found]
        return True
