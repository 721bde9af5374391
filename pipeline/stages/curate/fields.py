"""What a record of the user's holds beside its text: used, refused by name, or counted.

Nothing that a record says is dropped unseen.  What would change what is taught if it were left out
(images, tool descriptions and calls, turns that are not to be learned) is refused; all else that is
not used is counted by its name, and told.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

NOTHING: tuple[Any, ...] = (None, "", [], {})  # values that say nothing
MEDIA = ("images", "image", "videos", "video", "audios", "audio", "files")
TOOLS = ("tools", "functions", "available_tools")
CALLS = ("tool_calls", "function_call", "tool_call")
WEIGHTS = ("weight", "loss", "train", "loss_weight", "trainable", "masked")
HIDES = ("masked",)  # here 1 hides a turn; everywhere else 0 does
LEARNED = (1, True, "1", "true", "True")
NAMES = 100  # different names that are counted by themselves; the rest together
OTHERS = "other keys"
LEADING = re.compile(r"\A(?:[^\S\n]*\n)+")


class Unusable(ValueError):
    """A record that cannot be trained on; the message is one sentence for its owner."""


class Noted(Mapping[str, Any]):
    """A record that notes which of its keys were asked for, and what its turns hold beside their text."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        self.record = record
        self.used: set[str] = set()
        self.inner: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.used.add(name)
        return self.record[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.record)

    def __len__(self) -> int:
        return len(self.record)

    def __contains__(self, name: object) -> bool:
        return name in self.record

    def below(self, where: str, part: Noted) -> None:
        """Take in what a turn or a part of one holds and nobody asked for."""
        self.inner |= {f"{where}: {name}" for name in part.unused()}

    def unused(self) -> list[str]:
        """The keys that say something and were not asked for, in order; those of turns behind them."""
        own = [
            str(name) for name in self.record if name not in self.used and self.record[name] not in NOTHING
        ]
        return own + sorted(self.inner)


def refuse(record: Noted, where: str, *, answer: bool = False) -> None:
    """Raise :class:`Unusable` for what cannot be left out without changing what is taught.

    ``answer`` is for a turn of the assistant's, which is learned as a whole or not at all.
    """
    plain = record.record

    def first(names: tuple[str, ...]) -> str | None:
        return next((name for name in names if plain.get(name) not in NOTHING), None)

    if name := first(CALLS):
        raise Unusable(f"{where} calls a tool outside its text ({name!r}); write the call into the content")
    if name := first(TOOLS):
        raise Unusable(f"{where} describes tools in {name!r}; write them into the system turn's text")
    if name := first(MEDIA):
        raise Unusable(f"{where} has {name!r}; a model of text alone cannot learn from it")
    if answer:
        for name in WEIGHTS:
            value = plain.get(name)
            learned = value in LEARNED if name not in HIDES else value not in LEARNED
            if value is not None and not learned:
                raise Unusable(
                    f"{where} has {name!r} {str(value)[:20]!r}, and every answer is learned alike; "
                    "end the chat before it, or leave the key out"
                )
            if value is not None:
                record.used.add(name)


def count_unused(record: Noted, counts: Counter[str]) -> None:
    """Add a record's unused keys; of more than ``NAMES`` names, the later ones count together."""
    count_names(record.unused(), counts)


def count_names(names: Iterable[str], counts: Counter[str]) -> None:
    """Add one of each name."""
    for name in names:
        short = name[:60]
        counts[short if short in counts or len(counts) < NAMES else OTHERS] += 1


def told(counts: Mapping[str, int], most: int = 8) -> str:
    """The names with their counts, the most frequent first, in characters that a terminal can show."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    shown = [
        f"{''.join(char if char.isprintable() else '?' for char in name)} ({count:,})"
        for name, count in ordered[:most]
    ]
    if len(ordered) > most:
        shown.append(f"{len(ordered) - most} more")
    return ", ".join(shown)


def trimmed(text: str) -> str:
    """The text of a turn without the white space that means nothing.

    Empty lines in front and all white space behind go, and a single space in front, which separates
    prompt and answer in completion data.  A longer indent, or a tab, stays: in code it is content.
    """
    text = LEADING.sub("", text).rstrip()
    return text[1:] if text[:1] == " " and not text[1:2].isspace() else text


def kind_of(value: object) -> str:
    """What a value is, in words."""
    if value is None:
        return "missing"
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")
