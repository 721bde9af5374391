"""From tokens to text that can be shown at once: whole characters, and stop words cut off.

A token may end in the middle of a character, so text is held back while it ends in the
replacement character; and the end of the text may be the beginning of a stop word, so
that much is held back too.  Tokens are told with the text that they are part of: what a
stop word cut off was never said, and is not counted either.  Standard library only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

REPLACEMENT = "\ufffd"
WINDOW = 12  # tokens that are decoded together at most, but for characters of more: a decoder's time grows with them


@dataclass(frozen=True)
class Shown:
    """Text that is certain, and how many more tokens it is made of; a token of which a part is shown is one of them."""

    text: str = ""
    tokens: int = 0


class Certain:
    """Text that is handed out once no stop word can begin in it, with the tokens that it came with.

    ``stopped`` is true once a stop word was met; the text ends right before it.
    """

    def __init__(self, stop_words: list[str]) -> None:
        self.stop_words = stop_words
        self.stopped = False
        self._pending = ""
        self._begins: deque[int] = deque()  # of each token that was not handed out: where its text begins
        self._out = 0  # characters handed out

    def add(self, text: str, tokens: int = 1) -> None:
        """Take text, and the tokens that all of it came with."""
        begin = self._out + len(self._pending)
        self._begins.extend([begin] * tokens)
        self._pending += text

    def release(self, *, final: bool = False) -> Shown:
        """What is certain now; with ``final`` all that is left."""
        if self.stopped:
            return Shown()
        found = [place for word in self.stop_words if (place := self._pending.find(word)) >= 0]
        if found:
            self.stopped = True
            cut = min(found)
        else:
            cut = len(self._pending) - (0 if final else self._possible_stop())
        text, self._pending = self._pending[:cut], self._pending[cut:]
        self._out += cut
        count = 0
        while self._begins and (self._begins[0] < self._out or (final and not self.stopped)):
            self._begins.popleft()
            count += 1
        return Shown(text, count)

    def _possible_stop(self) -> int:
        """How many of the last characters may be the beginning of a stop word."""
        longest = 0
        for word in self.stop_words:
            for size in range(min(len(word) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(word[:size]):
                    longest = size
                    break
        return longest


class TextStream:
    """The text of one answer as its tokens arrive; ``decode`` turns a list of token ids into text."""

    def __init__(self, decode: Callable[[list[int]], str], stop_words: list[str]) -> None:
        self._decode = decode
        self._certain = Certain(stop_words)
        self._tokens: list[int] = []
        self._context = 0  # where the tokens begin that give a decoder its surroundings
        self._read = 0  # tokens whose text is known
        self._before = ""  # the text of those from _context on

    @property
    def stopped(self) -> bool:
        return self._certain.stopped

    @property
    def stop_words(self) -> list[str]:
        return self._certain.stop_words

    def add(self, tokens: list[int]) -> Shown:
        """Take tokens; returns what is certain now (often nothing)."""
        if self.stopped:
            return Shown()
        # Where a word may cut between tokens, the text of each must be known.
        for group in [[token] for token in tokens] if self.stop_words else [tokens]:
            self._take(group)
        return self._certain.release()

    def _take(self, tokens: list[int]) -> None:
        self._tokens += tokens
        after = self._decode(self._tokens[self._context :])
        if len(after) > len(self._before) and not after.endswith(REPLACEMENT):
            self._certain.add(after[len(self._before) :], len(self._tokens) - self._read)
            if len(self._tokens) - self._context > WINDOW:
                self._context, after = self._read, self._decode(self._tokens[self._read :])
            self._read, self._before = len(self._tokens), after

    def finish(self) -> Shown:
        """What was held back so far, no more tokens being to come."""
        if self.stopped:
            return Shown()
        after = self._decode(self._tokens[self._context :])
        self._certain.add(after[len(self._before) :], len(self._tokens) - self._read)
        self._read, self._before = len(self._tokens), after
        return self._certain.release(final=True)


def portions(text: str, count: int, tokens: list[str]) -> Iterator[tuple[str, int]]:
    """A part of an answer by the tokens that it came with, as far as they are known: each token's text, and 1.

    ``tokens`` are their texts alone, which are not always what they add: SentencePiece's lack the space that they begin
    with, and a part of a character is a replacement character.  Text that cannot be told apart goes to the token after.
    """
    if len(tokens) != count or count < 2:
        yield text, count
        return
    room = 1  # characters that may stand before a token's own
    for each in tokens[:-1]:
        place = -1 if REPLACEMENT in each else text.find(each, 0, room + len(each))
        if place < 0:
            room += 1
            yield "", 1
        else:
            yield text[: place + len(each)], 1
            text, room = text[place + len(each) :], 1
    yield text, 1
