"""Wikipedia dumps (``pages-articles.xml``, plain or .bz2), cleaned by Curator's extractor."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from functools import cache
from typing import Any

from pipeline.documents import Unit
from pipeline.schema import Source
from pipeline.stages.curate.readers import Document, Dropped, Fault, Read
from pipeline.stages.curate.readers.streams import Broken, ChunkFile, open_binary, unpacked


def read_dump(unit: Unit, source: Source, max_bytes: int) -> Iterator[Read]:
    """The articles of a dump: pages of the main namespace that are no redirect."""
    place = 0
    try:
        with open_binary(unit.path) as handle:
            # A dump is a trusted download; the parser still never resolves outside entities.
            root: ET.Element | None = None
            for event, element in ET.iterparse(ChunkFile(unpacked(handle, unit.path)), ("start", "end")):
                if event == "start":
                    root = element if root is None else root
                    continue
                if not element.tag.endswith("}page") and element.tag != "page":
                    continue
                place += 1
                yield _article(place, element, source.language, max_bytes)
                element.clear()
                if root is not None:
                    root.clear()  # or it would keep every page as an empty child
    except (Broken, ET.ParseError) as error:
        yield Fault(place + 1, f"{error}; nothing behind this page was read")


def _article(place: int, page: ET.Element, language: str, max_bytes: int) -> Read:
    space = page.tag.removesuffix("page")
    title = page.findtext(f"{space}title") or ""
    markup = page.findtext(f"{space}revision/{space}text")
    if page.findtext(f"{space}ns") != "0":
        return Dropped(place, "not an article")
    if page.find(f"{space}redirect") is not None:
        return Dropped(place, "a redirect")
    if not markup:
        return Fault(place, "the page has no text")
    if len(markup) > max_bytes:
        return Fault(place, f"the page is longer than {max_bytes:,} characters (curate.max_record_mb)")
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
