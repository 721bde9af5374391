"""Wikipedia dumps (``pages-articles.xml``, plain or packed), cleaned by Curator's extractor.

The XML is taken in piece by piece: a page longer than a record may be is let go while it is read.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Dropped, Fault, Read
from pipeline.stages.curate.readers.streams import Broken, open_binary, unpacked

FEED = 1 << 16  # bytes that the parser is given at a time
WANTED = {("title",): "title", ("ns",): "space", ("revision", "text"): "markup"}


@dataclass
class _Page:
    """What is known of a page so far; ``size`` counts all of its characters, wanted or not."""

    redirect: bool = False
    size: int = 0
    parts: dict[str, list[str]] = field(default_factory=dict)

    def text(self, name: str) -> str:
        return "".join(self.parts.get(name, ()))


class _Pages:
    """A parser's target: collects one page at a time, and no more of it than ``max_bytes`` characters."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.page: _Page | None = None
        self.path: list[str] = []  # of open elements below the page
        self.done: list[_Page] = []
        self.quiet = 0  # bytes since the parser told anything

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        name = tag.rpartition("}")[2]
        self.quiet = 0
        if self.page is None:
            self.page = _Page() if name == "page" else None
            return
        self._count(len(name) + sum(map(len, attributes.values())))
        self.page.redirect |= not self.path and name == "redirect"
        if len(self.path) < 1000:
            self.path.append(name)
        else:
            raise Broken("its elements are nested more than 1,000 deep")

    def data(self, text: str) -> None:
        """Text, in whatever pieces."""
        self.quiet = 0
        if self.page is None:
            return
        self._count(len(text))
        wanted = WANTED.get(tuple(self.path))
        if wanted is not None and self.page.size <= self.max_bytes:
            self.page.parts.setdefault(wanted, []).append(text)

    def end(self, tag: str) -> None:
        """An element ends."""
        self.quiet = 0
        if self.page is None:
            return
        if self.path:
            self.path.pop()
        else:
            self.done.append(self.page)
            self.page = None

    def close(self) -> None:
        """The document ends."""

    def _count(self, size: int) -> None:
        assert self.page is not None
        self.page.size += size
        if self.page.size > self.max_bytes:
            self.page.parts.clear()


def read_dump(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The articles of a dump: pages of the main namespace that are no redirect."""
    place = 0
    target = _Pages(max_bytes)
    parser = ET.XMLParser(target=target)  # never resolves outside entities
    try:
        with open_binary(unit.path) as handle:
            for chunk in unpacked(handle, unit.path):
                for start in range(0, len(chunk), FEED):
                    piece = chunk[start : start + FEED]
                    target.quiet += len(piece)
                    parser.feed(piece)
                    for page in target.done:
                        place += 1
                        yield _article(place, page, source.language, max_bytes)
                    target.done.clear()
                    if target.quiet > max_bytes:
                        raise Broken(f"a tag or comment is longer than {max_bytes:,} bytes")
            parser.close()
    except (Broken, ET.ParseError) as error:
        for page in target.done:
            place += 1
            yield _article(place, page, source.language, max_bytes)
        yield Fault(place + 1, f"{error}; nothing behind this page was read")


def _article(place: int, page: _Page, language: str, max_bytes: int) -> Read:
    if page.size > max_bytes:
        return Fault(place, f"the page is longer than {max_bytes:,} characters (curate.max_record_mb)")
    title, markup = page.text("title"), page.text("markup")
    if page.text("space").strip() != "0":
        return Dropped(place, "not an article")
    if page.redirect:
        return Dropped(place, "a redirect")
    if not markup.strip():
        return Dropped(place, "the page has no text")
    found = _extractor(language).extract(
        {"title": title, "id": "", "url": "", "language": language, "source_id": "", "raw_content": markup}
    )
    text = (found or {}).get("text", "")
    if not text.strip():
        return Dropped(place, "no text is left of the markup")
    return Document(place, text, title)


@cache
def _extractor(language: str) -> Any:
    from nemo_curator.stages.text.download.wikipedia.extract import WikipediaExtractor

    return WikipediaExtractor(language=language)
