"""Web pages as text, in the character set that they are written in.

In the order of the HTML standard: a byte order mark, the HTTP header, the page's ``<meta>`` or XML
declaration; a page that names none is UTF-8 where it can be, else what Resiliparse finds it to be.
"""

from __future__ import annotations

import codecs
import re

from pipeline.stages.curate.readers.streams import marked

HEAD = 1 << 14  # bytes that a declaration is looked for in; the standard's 1,024 miss many
COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
META = re.compile(rb"<meta[^>]*?charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
XML = re.compile(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)", re.IGNORECASE)
XML_TEXT = re.compile(r"\s*<\?xml[^>]*\?>")
HEADER = re.compile(r"charset\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
# Browsers read these names as the larger sets that writers of such pages really use.
WIDER = {
    "shift_jis": "cp932", "gbk": "gb18030", "gb2312": "gb18030", "euc_kr": "cp949", "big5": "big5hkscs",
    "iso8859-11": "cp874",
}  # fmt: skip
SEVERAL_BYTES = ("cp932", "gb18030", "cp949", "big5hkscs", "euc_jp", "iso2022_jp")


def page_text(page: bytes, content_type: str = "", given: str | None = None) -> str:
    """The page as text; what does not fit its character set becomes U+FFFD.

    ``content_type`` is the header that it came with, ``given`` the set that the recipe names for pages
    that do not say theirs.
    """
    mark, rest = marked(page)
    if mark is not None:
        return rest.decode(mark, "replace")
    declared = in_header(content_type) or _in_page(page)
    utf8 = _strictly(page, "utf-8")
    # Servers and templates name a Western set for pages in UTF-8; text of one byte a character is not
    # UTF-8 by chance, once it has letters beyond ASCII.
    if utf8 is not None and declared not in SEVERAL_BYTES and not (declared or "").startswith("utf-16"):
        return _without_declaration(utf8)
    encoding = declared if declared not in (None, "utf-8") else given or _detected(page)
    text = _strictly(page, encoding)
    if text is None:
        text = utf8 if utf8 is not None else page.decode(encoding, "replace")
    return _without_declaration(text)


def in_header(content_type: str) -> str | None:
    """The character set that a ``Content-Type`` names, as Python knows it."""
    found = HEADER.search(content_type)
    return known(found[1]) if found else None


def known(name: str) -> str | None:
    """Python's name of what a page calls its character set; None for one that does not exist."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    found = map_encoding_to_html5(name.lower(), False)
    if found is None:
        return None
    found = codecs.lookup(found).name
    return WIDER.get(found, found)


def _in_page(page: bytes) -> str | None:
    head = page[:HEAD]
    found = XML.match(head)
    found = META.search(COMMENT.sub(b"", head)) or found
    encoding = known(found[1].decode("ascii")) if found else None
    # A declaration that could be read as ASCII is not written in UTF-16.
    return "utf-8" if encoding is not None and encoding.startswith("utf-16") else encoding


def _strictly(page: bytes, encoding: str) -> str | None:
    try:
        return page.decode(encoding)
    except (UnicodeError, LookupError):
        return None


def _detected(page: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding

    found = codecs.lookup(detect_encoding(page, max_len=1 << 17)).name
    return WIDER.get(found, found)


def _without_declaration(text: str) -> str:
    """Parsers refuse text that says in which bytes it was written."""
    return XML_TEXT.sub("", text, count=1) if text.lstrip()[:5] == "<?xml" else text
