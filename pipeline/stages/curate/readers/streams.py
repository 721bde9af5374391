"""Bytes out of local, remote and packed files, with bounded memory.

Python's own ``gzip`` and ``bz2`` modules and ``zstandard``'s stream reader differ in what
they make of a file that ends too early (``zstandard`` says nothing at all).  Here one loop
drives the three decompressors, so a file cut short is always told.
"""

from __future__ import annotations

import bz2
import codecs
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.documents import is_remote

CHUNK = 1 << 16  # packed bytes that are read at a time
OUT = 1 << 22  # unpacked bytes that come out at a time, about


class Broken(Exception):
    """The stream cannot be read any further; what came before is good."""


def open_binary(path: str) -> AbstractContextManager[BinaryIO]:
    """Open a local file or an fsspec address for reading."""
    if not is_remote(path):
        return cast("AbstractContextManager[BinaryIO]", open(path, "rb"))
    import fsspec

    return cast("AbstractContextManager[BinaryIO]", fsspec.open(path, "rb"))


def unpacked(handle: BinaryIO, path: str) -> Iterator[bytes]:
    """The file's bytes, unpacked as its name says, some megabytes at a time.  Raises :class:`Broken`."""
    kind = Path(path).suffix.lower()
    chunks = iter(lambda: handle.read(CHUNK), b"")
    yield from _unpack(chunks, kind[1:]) if kind in (".gz", ".zst", ".bz2") else chunks


def undone(body: bytes, encoding: str, max_bytes: int) -> Iterator[bytes]:
    """A body with an HTTP content encoding undone, until there are more than ``max_bytes``.

    Raises :class:`Broken` for an encoding that is not known or not what it says.
    """
    kind = {"gzip": "gz", "x-gzip": "gz", "deflate": "deflate", "br": "br", "zstd": "zst"}.get(encoding)
    if kind is None:
        raise Broken(f"the content encoding {encoding!r} is not known")
    size = 0
    for data in _unpack(iter([body]), kind):
        size += len(data)
        yield data
        if size > max_bytes:
            return


def _unpack(chunks: Iterator[bytes], kind: str) -> Iterator[bytes]:
    """One member or frame after the other; little is put in at once, so little comes out."""
    decompressor: Any = None
    for chunk in chunks:
        left = chunk
        while left:
            if decompressor is None:
                decompressor = _decompressor(kind, left)
            try:
                data, left, ended = decompressor.take(left)
            except Exception as error:  # zlib.error, OSError, ZstdError, brotli.error: one class each
                raise Broken(f"not whole {kind} data: {error}") from None
            if data:
                yield data
            if ended:  # another member may follow
                decompressor = None
                if not left.strip(b"\0"):
                    left = b""
    if decompressor is not None:
        raise Broken(f"the file ends in the middle of its {kind} data")


class _Zlib:
    """gzip and deflate."""

    def __init__(self, bits: int) -> None:
        self.inner = zlib.decompressobj(wbits=bits)

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        """(some output, input that is left, whether the member has ended); so with all of these."""
        out = more = self.inner.decompress(data, OUT)
        while more and not self.inner.unconsumed_tail and not self.inner.eof and len(more) == OUT:
            more = self.inner.decompress(b"", OUT)  # output that waits inside, all input taken
            out += more
        rest = self.inner.unused_data if self.inner.eof else self.inner.unconsumed_tail
        return out, rest, self.inner.eof


class _Bz2:
    """bz2 takes all input at once and gives its output bit by bit."""

    def __init__(self) -> None:
        self.inner = bz2.BZ2Decompressor()

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        out = self.inner.decompress(data if self.inner.needs_input else b"", OUT)
        if self.inner.eof:
            return out, self.inner.unused_data, True
        return out, b"" if self.inner.needs_input else data, False  # asked again, and then not given it


class _Zstandard:
    """A frame's blocks of 128 KiB can be packed into four bytes, so few bytes go in at once."""

    PIECE = 256

    def __init__(self) -> None:
        import zstandard

        self.inner: Any = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        out = self.inner.decompress(data[: self.PIECE])
        rest = data[self.PIECE :]
        return out, self.inner.unused_data + rest if self.inner.eof else rest, self.inner.eof


class _Brotli:
    """Brotli takes all input at once too, and knows no end before its stream is finished."""

    def __init__(self) -> None:
        import brotli

        self.inner: Any = brotli.Decompressor()

    def take(self, data: bytes) -> tuple[bytes, bytes, bool]:
        ready = self.inner.can_accept_more_data()
        out = self.inner.process(data if ready else b"", output_buffer_limit=OUT)
        if self.inner.is_finished():
            return out, b"", True
        return out, b"" if self.inner.can_accept_more_data() else data, False


def _decompressor(kind: str, data: bytes) -> Any:
    if kind == "gz":
        return _Zlib(31)
    if kind == "deflate":  # with zlib's header, as it should be, or without, as it often is
        return _Zlib(15 if data[0] & 15 == 8 else -15)
    if kind == "bz2":
        return _Bz2()
    return _Zstandard() if kind == "zst" else _Brotli()


def words_of(error: BaseException) -> str:
    """The first line of an error in printable characters, cut to a line's length."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in first)[:120]


def bounded_lines(chunks: Iterator[bytes], max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(line number, line without its end) pairs; None for a line of more than ``max_bytes``.

    Never holds more than one line and one chunk, and looks at every byte once.
    """
    number, held, size = 1, list[bytes](), 0
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            size += end - start
            yield number, None if size > max_bytes else b"".join([*held, chunk[start:end]])
            number, held, size, start = number + 1, [], 0, end + 1
        size += len(chunk) - start
        if size > max_bytes:
            held = []
        else:
            held.append(chunk[start:])
    if size:
        yield number, None if size > max_bytes else b"".join(held)


MARKS = (  # of byte order, the longer first: UTF-16's is the beginning of UTF-32's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def marked(data: bytes) -> tuple[str | None, bytes]:
    """The encoding that a byte order mark names, if there is one, and the data behind it."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding, data[len(mark) :]
    return None, data


def as_utf8(chunks: Iterator[bytes], encoding: str | None) -> Iterator[bytes]:
    """The bytes in UTF-8, without a byte order mark; a mark counts for more than ``encoding``.

    UTF-8 itself is passed on as it is: a line that is not UTF-8 costs only itself.  Raises
    :class:`Broken` where another encoding does not fit.
    """
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 4:
            break
    told, head = marked(head)
    encoding = told or encoding or "utf-8"
    if codecs.lookup(encoding).name == "utf-8":
        yield from chain([head] if head else [], chunks)
        return
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chain([head], chunks):
            if text := decoder.decode(chunk):
                yield text.encode("utf-8", "surrogatepass")
        if text := decoder.decode(b"", True):
            yield text.encode("utf-8", "surrogatepass")
    except UnicodeError:
        raise Broken(f"not {encoding}") from None


def peeked(chunks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes (at least ``size``, if there are so many), and all of them once more.

    What breaks before ``size`` bytes breaks again where it did.
    """
    held: list[bytes] = []
    broken: Broken | None = None
    try:
        for chunk in chunks:
            held.append(chunk)
            if sum(map(len, held)) >= size:
                break
    except Broken as error:
        broken = error

    def again() -> Iterator[bytes]:
        yield from held
        if broken is not None:
            raise broken
        yield from chunks

    return b"".join(held), again()
