"""Text and Markdown files, HTML pages, and Common Crawl's WARC and WET archives.

The main text of a page is found by one of Curator's extractors (jusText, Resiliparse,
Trafilatura), with the stop words of the language that CLD2 tells.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from pipeline.documents import COMPRESSED, Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Dropped, Fault, Read
from pipeline.stages.curate.readers.charset import in_header, page_text
from pipeline.stages.curate.readers.streams import Broken, marked, open_binary, undone, unpacked, words_of
from pipeline.stages.curate.readers.warc import Record, read_records


def read_text(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """A text or Markdown file is one document, named by its first heading or its file name."""
    data = _whole(unit.path, max_bytes)
    if isinstance(data, Fault):
        yield data
        return
    mark, rest = marked(data)
    encoding = mark or source.encoding or "utf-8"
    try:
        text = rest.decode(encoding)
    except UnicodeDecodeError as error:
        line = rest[: error.start].count(b"\n") + 1
        remedy = "" if mark or source.encoding else "; set the source's encoding"
        yield Fault(line, f"not {encoding.upper()} (byte {error.start}{remedy})")
        return
    heading = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("# ")), "")
    yield Document(1, text, heading or _stem(unit.name))


def read_html(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """An HTML file is one page."""
    data = _whole(unit.path, max_bytes)
    yield data if isinstance(data, Fault) else _page(1, data, "", unit.name, source)


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
            yield _page(place, body, kind, url, source)


def read_wet(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The texts of a WET file's conversion records: UTF-8, unless the record names another set."""
    for place, found in _records(unit.path, ("conversion",), max_bytes):
        if isinstance(found, Fault | Dropped):
            yield found
            continue
        url, kind, _, body = found
        encoding = in_header(kind) or "utf-8"
        try:
            yield Document(
                place, body.decode("utf-8-sig" if encoding == "utf-8" else encoding), extra={"url": url}
            )
        except UnicodeDecodeError as error:
            yield Fault(place, f"not {encoding.upper()} (byte {error.start})")


Payload = tuple[str, str, str, bytes]  # URL, content type, HTTP status, body
ABOUT_OTHERS = ("warcinfo", "request", "metadata")  # records that hold no document of their own
HTTP = (b"HTTP/1.", b"HTTP/2", b"HTTP/3")


def _records(
    path: str, kinds: tuple[str, ...], max_bytes: int
) -> Iterator[tuple[int, Payload | Fault | Dropped]]:
    """(number, payload) of the records of these types; records that only tell about others are passed over."""
    for record in read_records(path, max_bytes):
        if isinstance(record, Fault):
            yield record.place, record
            continue
        kind = record.fields.get("warc-type")
        if kind in kinds:
            yield record.place, _payload(record, max_bytes)
        elif kind is None:
            yield record.place, Fault(record.place, "the record has no WARC-Type")
        elif kind not in ABOUT_OTHERS:
            yield record.place, Dropped(record.place, f"a record of type {words_of(ValueError(kind))}")


def _payload(record: Record, max_bytes: int) -> Payload | Fault:
    """A record's payload, its transfer and content encodings undone."""
    http, body, status = None, record.block, ""
    kind = record.fields.get("content-type", "")
    if (not kind or kind.lower().startswith("application/http")) and body.startswith(HTTP):
        from warcio.statusandheaders import StatusAndHeadersParser

        stream = io.BytesIO(body)
        try:
            http = StatusAndHeadersParser(["HTTP/"], verify=False).parse(stream)
            status = http.get_statuscode() or ""
            body = _decoded(body[stream.tell() :], http, max_bytes)
        except Broken as error:
            return Fault(record.place, str(error))
        except (EOFError, OSError, ValueError, AttributeError, IndexError) as error:
            return Fault(record.place, f"not a whole HTTP message: {words_of(error)}")
        kind = http.get_header("Content-Type") or ""
    if len(body) > max_bytes:
        return Fault(record.place, f"the record is longer than {max_bytes:,} bytes (curate.max_record_mb)")
    return record.fields.get("warc-target-uri", ""), kind.lower(), status, body


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
    parts: list[bytes] = []
    size = 0
    try:
        with open_binary(path) as handle:
            for part in unpacked(handle, path):
                size += len(part)
                if size > max_bytes:
                    return Fault(1, f"the file is longer than {max_bytes:,} bytes (curate.max_record_mb)")
                parts.append(part)
    except Broken as error:
        return Fault(0, str(error))
    return b"".join(parts)


def _stem(name: str) -> str:
    """A file's name without its folders and endings."""
    plain = PurePosixPath(name)
    return PurePosixPath(plain.stem).stem if plain.suffix.lower() in COMPRESSED else plain.stem


def _page(place: int, page: bytes, content_type: str, url: str, source: Source) -> Document | Dropped:
    html = page_text(page, content_type, source.encoding)
    try:
        found = _extractor(source.extractor).extract(
            {"url": url, "warc_id": "", "source_id": "", "content": html.encode("utf-8", "replace")}
        )
    except Exception as error:  # the extractors' parsers raise whatever they meet in a wild page
        return Dropped(place, f"the extractor failed ({type(error).__name__})")
    if found is None or not found["text"].strip():
        return Dropped(place, "no main text in the page")
    return Document(place, found["text"], _title(html), extra={"url": url})


def _title(html: str) -> str:
    from resiliparse.parse.html import HTMLTree

    try:
        return " ".join((HTMLTree.parse(html).title or "").split())
    except ValueError:
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
