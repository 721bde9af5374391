"""Text and Markdown files, HTML pages, and Common Crawl's WARC and WET archives.

The main text of a page is found by one of Curator's extractors (jusText, Resiliparse,
Trafilatura), with the stop words of the language that CLD2 tells.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Dropped, Fault, Read
from pipeline.stages.curate.readers.streams import Broken, ChunkFile, open_binary, undone, unpacked, words_of

RECORD_END = b"\r\n\r\n"  # of every WARC record


def read_text(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """A text or Markdown file is one document, named by its first heading or its file name."""
    data = _whole(unit.path, max_bytes)
    if isinstance(data, Fault):
        yield data
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        yield Fault(line, f"not UTF-8 (byte {error.start})")
        return
    heading = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("# ")), "")
    yield Document(1, text, heading or PurePosixPath(unit.name).stem)


def read_html(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """An HTML file is one page."""
    data = _whole(unit.path, max_bytes)
    yield data if isinstance(data, Fault) else _page(1, data, unit.name, source)


def read_warc(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The pages among a WARC file's response and resource records."""
    for place, found in _records(unit.path, ("response", "resource"), max_bytes):
        if isinstance(found, Fault | Dropped):
            yield found
            continue
        url, kind, status, body = found
        if status and not status.startswith("2"):
            yield Dropped(place, f"HTTP status {status}")
        elif kind and "html" not in kind and not kind.startswith("text/"):
            yield Dropped(place, "not a text page")
        else:
            yield _page(place, body, url, source)


def read_wet(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The texts of a WET file's conversion records."""
    for place, found in _records(unit.path, ("conversion",), max_bytes):
        if isinstance(found, Fault | Dropped):
            yield found
            continue
        url, _, _, body = found
        try:
            yield Document(place, body.decode("utf-8"), extra={"url": url})
        except UnicodeDecodeError as error:
            yield Fault(place, f"not UTF-8 (byte {error.start})")


Payload = tuple[str, str, str, bytes]  # URL, content type, HTTP status, body
ABOUT_OTHERS = ("warcinfo", "request", "metadata")  # records that hold no document of their own


def _records(
    path: str, kinds: tuple[str, ...], max_bytes: int
) -> Iterator[tuple[int, Payload | Fault | Dropped]]:
    """(number, payload) of the records of these types; records that only tell about others are passed over."""
    from warcio.archiveiterator import ArchiveIterator
    from warcio.exceptions import ArchiveLoadFailed

    place = 0
    held: list[tuple[int, Payload | Fault | Dropped]] = []  # the last record, not yet known to be whole
    with open_binary(path) as handle:
        # Unpacked here: warcio passes over the end of a gzip file that was cut short.
        chunks = unpacked(handle, path)
        try:
            first = next(chunks, b"")
        except Broken as error:
            yield 0, Fault(0, str(error))
            return
        if not first.lstrip().startswith(b"WARC/"):
            yield (
                0,
                Fault(0, "an ARC file, not WARC" if first.startswith(b"filedesc:") else "not a WARC file"),
            )
            return
        stream = ChunkFile(chain([first], chunks))
        records = iter(ArchiveIterator(stream, check_digests=False))
        while True:
            reading = place + 1
            try:
                record = next(records, None)
                if record is None and stream.tail != RECORD_END:
                    raise Broken("the file ends in the middle of it")
                yield from held
                held.clear()
                if record is None:
                    return
                place += 1
                if record.rec_type in kinds:
                    held.append((place, _payload(place, record, max_bytes)))
                elif record.rec_type is None:
                    held.append((place, Fault(place, "the record has no WARC-Type")))
                elif record.rec_type not in ABOUT_OTHERS:
                    held.append((place, Dropped(place, f"a record of type {record.rec_type}")))
            except (Broken, ArchiveLoadFailed, EOFError, OSError, ValueError, AttributeError) as error:
                broken = held[0][0] if held else reading
                yield (
                    broken,
                    Fault(broken, f"not a whole WARC record: {words_of(error)}; nothing behind it was read"),
                )
                return


def _payload(place: int, record: Any, max_bytes: int) -> Payload | Fault:
    """A record's payload, its transfer and content encodings undone.

    Not by warcio: an encoding that it cannot undo ends its reading of the whole file.
    """
    body = record.raw_stream.read(max_bytes + 1)
    http = record.http_headers
    if http:
        try:
            body = _decoded(body, http, max_bytes)
        except Broken as error:
            return Fault(place, str(error))
    if len(body) > max_bytes:
        return Fault(place, f"the record is longer than {max_bytes:,} bytes (curate.max_record_mb)")
    kind = http.get_header("Content-Type") if http else record.rec_headers.get_header("Content-Type")
    return (
        record.rec_headers.get_header("WARC-Target-URI") or "",
        (kind or "").lower(),
        (http.get_statuscode() or "") if http else "",
        body,
    )


def _decoded(body: bytes, http: Any, max_bytes: int) -> bytes:
    """The body of an HTTP message without its encodings; at most a byte more than ``max_bytes``.

    Crawlers often keep a header and drop what it speaks of, so a body that is plainly not
    encoded stays as it is.  Raises :class:`Broken`.
    """
    if (http.get_header("Transfer-Encoding") or "").lower() == "chunked":
        from warcio.bufferedreaders import ChunkedDataReader

        body = ChunkedDataReader(io.BytesIO(body)).read(max_bytes + 1)
    named = [each.strip().lower() for each in (http.get_header("Content-Encoding") or "").split(",")]
    for encoding in reversed([each for each in named if each not in ("", "identity")]):
        if body.lstrip()[:1] == b"<":
            break
        body = b"".join(undone(body, encoding, max_bytes))
    return body


def _whole(path: str, max_bytes: int) -> bytes | Fault:
    with open_binary(path) as handle:
        data = handle.read(max_bytes + 1)
    if len(data) > max_bytes:
        return Fault(1, f"the file is longer than {max_bytes:,} bytes (curate.max_record_mb)")
    return data


def _page(place: int, html: bytes, url: str, source: Source) -> Document | Dropped:
    try:
        found = _extractor(source.extractor).extract(
            {"url": url, "warc_id": "", "source_id": "", "content": html}
        )
    except Exception as error:  # the extractors' parsers raise whatever they meet in a wild page
        return Dropped(place, f"the extractor failed ({type(error).__name__})")
    if found is None or not found["text"].strip():
        return Dropped(place, "no main text in the page")
    return Document(place, found["text"], _title(html), extra={"url": url})


def _title(html: bytes) -> str:
    from resiliparse.parse.html import HTMLTree

    try:
        return " ".join((HTMLTree.parse_from_bytes(html).title or "").split())
    except (ValueError, UnicodeDecodeError):
        return ""


@cache
def _extractor(name: str) -> Any:
    from nemo_curator.stages.text.download.common_crawl.extract import CommonCrawlHTMLExtractor
    from nemo_curator.stages.text.download.html_extractors import (
        JusTextExtractor,
        ResiliparseExtractor,
        TrafilaturaExtractor,
    )

    chosen = {
        "justext": JusTextExtractor,
        "resiliparse": ResiliparseExtractor,
        "trafilatura": TrafilaturaExtractor,
    }[name]
    return CommonCrawlHTMLExtractor(algorithm=chosen())
