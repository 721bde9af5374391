"""A user's YAML file: its text, held to what settings can need, and where each setting stands in it.

OmegaConf reads the values; this reads the same text once more with PyYAML's composer,
only for the line of every key, so that an error can name the place to mend.  Before either,
:func:`bounded` looks through the text event by event: a few lines of YAML can stand for more
than a machine can hold, since an alias repeats what its anchor names (the "billion laughs").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError

LARGEST = 1_000_000  # bytes of a file; the largest of configs/ has 10,000
DEEPEST = 40  # levels of mappings and lists; settings have 6
MOST = 50_000  # values, each counted as often as aliases repeat it


class TooMuch(yaml.MarkedYAMLError):
    """YAML that no settings are: too deep, too much, or within itself."""


@dataclass
class _Open:
    """A mapping or list that has begun: the anchor it bears, and how many values are in it so far."""

    anchor: str | None
    values: int = 1


def text_of(path: Path) -> str:
    """The text of a YAML file, :func:`bounded`.

    Raises ``OSError``, ``ValueError`` or ``yaml.YAMLError`` where it cannot be read, or is none of ours.
    """
    with open(path, "rb") as handle:
        found = handle.read(LARGEST + 1)
    if len(found) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes, which no file of settings has")
    return bounded(found.decode("utf-8-sig"))


def bounded(text: str) -> str:
    """The text as it is; raises :class:`TooMuch`, or another ``yaml.YAMLError``, with the place of what is wrong."""
    open_: list[_Open] = [_Open(None)]
    known: dict[str, int] = {}
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append(_Open(event.anchor))
            if len(open_) > DEEPEST + 1:
                raise _fault(event, f"nested more than {DEEPEST} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            ended = open_.pop()
            anchor, values = ended.anchor, ended.values
        elif isinstance(event, yaml.ScalarEvent):
            anchor, values = event.anchor, 1
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in {each.anchor for each in open_}:
                raise _fault(event, f"*{event.anchor} stands inside of what it names, which would never end")
            anchor, values = None, known.get(str(event.anchor), 1)
        else:
            continue
        if anchor is not None:
            known[anchor] = values
        open_[-1].values += values
        if open_[-1].values > MOST:
            raise _fault(event, f"more than {MOST:,} values, counted as often as aliases repeat them")
    return text


def key_lines(text: str) -> dict[str, int]:
    """Line number (from 1) of every key and list item of a :func:`bounded` text, by dotted path (``a.b``, ``a.0.b``).

    Raises ``yaml.YAMLError`` where the text is not YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    return {} if root is None else dict(_walk(root, ""))


def table(path: Path) -> tuple[Any, dict[str, int]]:
    """A table that a user keeps: its content, and where each key stands.  Raises :class:`UserError` with file and line."""
    try:
        text = text_of(path)
        return yaml.safe_load(text), key_lines(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(in_words(error, str(path))) from None


def in_words(error: Exception, shown: str) -> str:
    """What is wrong with a YAML file, which is ``shown`` so, with the line where it is known."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"{shown}:{mark.line + 1}" if mark else shown
        kind = "cannot be settings" if isinstance(error, TooMuch) else "this is not YAML"
        return f"{where}: {kind}: {error.problem or error.context}"
    if isinstance(error, OSError) and error.strerror:
        return f"{shown}: cannot be read: {error.strerror}"
    if isinstance(error, UnicodeDecodeError):
        return f"{shown}: cannot be read: it is not UTF-8 text"
    said = str(error).strip().splitlines()
    return f"{shown}: cannot be read: {said[0] if said else type(error).__name__}"


def _walk(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else "?"
            path = f"{prefix}.{name}" if prefix else str(name)
            yield path, key.start_mark.line + 1
            yield from _walk(value, path)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            path = f"{prefix}.{index}"
            yield path, item.start_mark.line + 1
            yield from _walk(item, path)


def _fault(event: yaml.Event, problem: str) -> TooMuch:
    mark: Any = event.start_mark
    return TooMuch(None, None, problem, mark)
