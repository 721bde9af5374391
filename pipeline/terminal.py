"""What reaches a terminal: text of models, of data and of other people as it is to be read, never as commands.

A terminal obeys what is printed: ESC and the C1 controls move the cursor, rewrite what stands there, set the clipboard (OSC 52);
a carriage return hides the line before it; the controls of writing direction show text in another order than it has.
:func:`visible` spells such characters out.  ``lifecycle`` has all that it prints go through it (:func:`guarded`), and its tables
and live lines, whose colours are commands of our own, through :func:`console`.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# All of C0 but tab and newline, DEL, C1, line and paragraph separators, directions (Unicode TR 9), halves of surrogate pairs.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def visible(text: str) -> str:
    """Text with characters that a terminal obeys spelled as JSON spells them (``\\u001b``); JSON stays the same JSON."""
    return UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class Guarded:
    """A text stream whose writers cannot command the terminal behind it; all else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(visible(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Have standard output and error guarded, whoever prints."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (Guarded(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def text(words: str, style: str = "") -> Text:
    """A piece of a table or line for :func:`console`."""
    from rich.text import Text

    return Text(visible(words), style)


def console(stderr: bool = False, **settings: Any) -> Console:
    """A console that shows text as it is: no command, and no markup or emoji in it counts.

    Our own markup goes through ``rich.text.Text.from_markup``.  ``settings`` are rich's.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class Plain(Console):
        @property
        def file(self) -> Any:
            found: Any = super().file
            return found.stream if isinstance(found, Guarded) else found

        @file.setter
        def file(self, new: Any) -> None:
            self._file = new

        def render_str(self, text: str, **more: Any) -> Text:
            return super().render_str(visible(text), **more)

        # Text that was made elsewhere and not by :func:`text` would be laid out by its width before.
        def render(
            self, renderable: RenderableType, options: ConsoleOptions | None = None
        ) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                text, style, control = segment
                yield segment if control else Segment(visible(text), style)

    return Plain(stderr=stderr, **{"highlight": False, "markup": False, "emoji": False, **settings})
