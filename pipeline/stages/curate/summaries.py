"""The summary of a document, as its authors wrote it, and what is said of its parameters."""

from __future__ import annotations

import re

from pipeline.stages.house_style import sentences

MAX_WORDS = 32
MIN_WORDS = 3
MARKUP = re.compile(r"^\s*(?:\.\. |:\w+|>>>|[=\-~*#^`]{3,}|@|\||<|\d+[.)] |[-*+] )")
SIGNATURE_LINE = re.compile(r"^[\w.]+\s?\([^)]*\)\s*(?:->.*|:)?$|->")
ROLE = re.compile(r":\w+(?::\w+)?:`~?([^`]*)`")
HEADER = re.compile(r"^Parameters\n-{3,}\n", re.MULTILINE)
NUMPY_PARAMETER = re.compile(r"^(\*{0,2}\w+)(?: ?: ?[^\n]*)?\n((?:[ \t]+[^\n]+\n?)+)", re.MULTILINE)
GOOGLE_ARGS = re.compile(r"^(?:Args|Arguments):\n((?:[ \t]+[^\n]*\n?|\n)+)", re.MULTILINE)
GOOGLE_PARAMETER = re.compile(r"^\s+(\w+)(?: \([^)]*\))?: (.+)$", re.MULTILINE)
SPHINX_PARAMETER = re.compile(r"^:param (?:[\w.]+ )?(\w+): (.+)$", re.MULTILINE)


def summary(text: str) -> str | None:
    """The first paragraph that is prose, on one line; None where there is none.

    A paragraph of more than ``MAX_WORDS`` words is cut to its first sentence; a summary
    shorter than ``MIN_WORDS`` words or still too long says nothing usable.
    """
    for paragraph in re.split(r"\n\s*\n", text.strip())[:2]:
        lines = paragraph.strip().splitlines()
        if lines and SIGNATURE_LINE.search(lines[0]):
            lines = lines[1:]
        if not lines or MARKUP.match(lines[0]):
            continue
        return usable(" ".join(line.strip() for line in lines))
    return None


def usable(prose: str) -> str | None:
    """Prose without markup roles, of a usable length; None where there is none."""
    line = ROLE.sub(r"`\1`", " ".join(prose.split())).replace("``", "`")
    if len(line.split()) > MAX_WORDS:
        line = sentences(line)[0] if sentences(line) else line
    words = line.split()
    letters = sum(c.isalpha() or c.isspace() for c in line)
    if (
        not MIN_WORDS <= len(words) <= MAX_WORDS
        or letters < 0.75 * len(line)
        or line.endswith((":", "::", ","))
    ):
        return None
    return line


def parameters(text: str) -> dict[str, str]:
    """Descriptions of a function's parameters (numpydoc, Google or Sphinx style), by name."""
    found: dict[str, str] = {}
    header = HEADER.search(text)
    if header:
        section = re.split(r"\n\w[^\n]*\n-{3,}\n", text[header.end() :], maxsplit=1)[0]
        for name, body in NUMPY_PARAMETER.findall(section + "\n"):
            found.setdefault(name.lstrip("*"), body)
    for block in GOOGLE_ARGS.findall(text):
        for name, body in GOOGLE_PARAMETER.findall(block):
            found.setdefault(name, body)
    for name, body in SPHINX_PARAMETER.findall(text):
        found.setdefault(name, body)
    described = {}
    for name, body in found.items():
        first = sentences(" ".join(body.split()))
        line = usable(first[0]) if first and not MARKUP.match(body.strip()) else None
        if line:
            described[name] = line
    return described
