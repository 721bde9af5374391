"""From tokens to text that can be shown at once: whole characters, and stop words cut off.

A token may end in the middle of a character, so text is held back while it ends in the
replacement character; and the end of the text may be the beginning of a stop word, so
that much is held back too.  Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\ufffd"
WINDOW = 12  # tokens that are decoded together at most, but for characters of more: a decoder's time grows with them


class TextStream:
    """The text of one answer as its tokens arrive.

    ``decode`` turns a list of token ids into text.  ``stopped`` is true once a stop word
    was met; the text ends right before it.
    """

    def __init__(self, decode: Callable[[list[int]], str], stop_words: list[str]) -> None:
        self._decode = decode
        self.stop_words = stop_words
        self._tokens: list[int] = []
        self._context = 0  # where the tokens begin that give a decoder its surroundings
        self._shown = 0  # tokens whose text is already in _pending or was handed out
        self._before = ""  # the text of those from _context on
        self._pending = ""
        self.stopped = False

    def add(self, tokens: list[int]) -> str:
        """Take tokens; returns the text that is now certain (often empty)."""
        if self.stopped:
            return ""
        self._tokens += tokens
        after = self._decode(self._tokens[self._context :])
        if len(after) > len(self._before) and not after.endswith(REPLACEMENT):
            self._pending += after[len(self._before) :]
            if len(self._tokens) - self._context > WINDOW:
                self._context, after = self._shown, self._decode(self._tokens[self._shown :])
            self._shown, self._before = len(self._tokens), after
        return self._release(final=False)

    def finish(self) -> str:
        """The text held back so far, no more tokens being to come."""
        if self.stopped:
            return ""
        self._pending += self._decode(self._tokens[self._context :])[len(self._before) :]
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        found = [place for word in self.stop_words if (place := self._pending.find(word)) >= 0]
        if found:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            return text
        keep = 0 if final else self._possible_stop()
        cut = len(self._pending) - keep
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text

    def _possible_stop(self) -> int:
        """How many of the last characters may be the beginning of a stop word."""
        longest = 0
        for word in self.stop_words:
            for size in range(min(len(word) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(word[:size]):
                    longest = size
                    break
        return longest
