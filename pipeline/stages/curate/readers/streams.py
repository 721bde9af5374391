"""Bytes out of local, remote and packed files, with bounded memory.

Python's own ``gzip`` and ``bz2`` modules and ``zstandard``'s stream reader differ in what
they make of a file that ends too early (``zstandard`` says nothing at all).  Here one loop
drives the three decompressors, so a file cut short is always told.
"""

from __future__ import annotations

import bz2
import io
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.documents import is_remote

CHUNK = 1 << 16  # packed bytes at a time; at most some tens of MB unpacked


class Broken(Exception):
    """The stream cannot be read any further; what came before is good."""


def open_binary(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a local file or an fsspec address for reading."""
    if not is_remote(path):
        return cast("AbstractContextManager[BinaryIO]", open(path, "rb"))
    import fsspec

    return cast("AbstractContextManager[BinaryIO]", fsspec.open(path, "rb"))


def unpacked(handle: BinaryIO, path: str) -> Iterator[bytes]:
    """The file's bytes, unpacked as its name says.  Raises :class:`Broken`."""
    kind = Path(path).suffix.lower()
    if kind not in (".gz", ".zst", ".bz2"):
        while chunk := handle.read(CHUNK):
            yield chunk
        return
    decompressor: Any = None
    while chunk := handle.read(CHUNK):
        while chunk:
            if decompressor is None:
                decompressor = _decompressor(kind)
            try:
                data = decompressor.decompress(chunk)
            except Exception as error:  # zlib.error, OSError, ZstdError: one class each
                raise Broken(f"not whole {kind[1:]} data: {error}") from None
            if data:
                yield data
            chunk = b""
            if decompressor.eof:  # another member may follow
                chunk = decompressor.unused_data
                decompressor = None
                if not chunk.strip(b"\0"):
                    chunk = b""
    if decompressor is not None:
        raise Broken(f"the file ends in the middle of its {kind[1:]} data")


def _decompressor(kind: str) -> Any:
    if kind == ".gz":
        return zlib.decompressobj(wbits=31)
    if kind == ".bz2":
        return bz2.BZ2Decompressor()
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


class ChunkFile(io.RawIOBase):
    """An iterator of bytes as a file for parsers; ``tail`` is the end of what was read so far."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest, self.tail = chunks, b"", b""

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes; empty at the end."""
        while not self._rest:
            following = next(self._chunks, None)
            if following is None:
                return b""
            self._rest = following
        size = len(self._rest) if size < 0 else size
        data, self._rest = self._rest[:size], self._rest[size:]
        self.tail = (self.tail + data[-4:])[-4:]
        return data


def words_of(error: BaseException) -> str:
    """The first line of an error in printable characters, cut to a line's length."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in first)[:120]


def bounded_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line without its end) pairs; None for a line of more than ``max_bytes``.

    Never holds more than one line and one chunk.
    """
    number, pending, too_long = 1, b"", False
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            if too_long or len(pending) + end - start > max_bytes:
                yield number, None
            else:
                yield number, pending + chunk[start:end]
            number, pending, too_long, start = number + 1, b"", False, end + 1
        if not too_long:
            pending += chunk[start:]
            if len(pending) > max_bytes:
                pending, too_long = b"", True
    if too_long:
        yield number, None
    elif pending:
        yield number, pending
