"""From the tokens that an engine generates to the pieces of one answer, the same for every engine that gives tokens.

Text, tokens, log-probabilities and count of an answer tell the same tokens: not those of the stop word that ended it, and not
the end token, which nobody sees.
"""

from __future__ import annotations

from collections.abc import Sequence

from answers import STOP, Piece, TokenLogprob
from conversations.tokenizer import ChatTokenizer
from sampling import Sampling
from text_stream import Shown, TextStream


class Pieces:
    """The pieces of one answer; ``prompt_tokens`` is how many its prompt has."""

    def __init__(self, tokenizer: ChatTokenizer, sampling: Sampling, prompt_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer.decode, list(sampling.stop_words))
        self._ends = set() if sampling.ignore_end else set(sampling.end_tokens)
        self._logprobs = sampling.logprobs
        self._prompt_tokens = prompt_tokens
        self._told = 0
        self._held: list[tuple[int, float]] = []  # generated, and not told yet

    @property
    def one_by_one(self) -> bool:
        """Whether an answer may end at any token, so that none should be generated for nothing."""
        return bool(self._text.stop_words)

    def add(self, tokens: Sequence[int], logprobs: Sequence[float] = (), *, reason: str = "") -> Piece:
        """Take what came, with as many ``logprobs`` where they were asked for; ``reason``: it is the last, and why.

        The piece is the last one, too, where an end token or a stop word is met, whatever the engine says.
        """
        end = next((place for place, token in enumerate(tokens) if token in self._ends), len(tokens))
        shown = list(tokens[:end])
        known = logprobs[:end] if self._logprobs else [0.0] * end
        self._held += zip(shown, known, strict=True)
        told = self._text.add(shown) if shown else Shown()
        if end < len(tokens):
            reason = STOP
        if reason and not self._text.stopped:
            rest = self._text.finish()
            told = Shown(told.text + rest.text, told.tokens + rest.tokens)
        if self._text.stopped:
            reason = STOP
        now, self._held = self._held[: told.tokens], self._held[told.tokens :]
        self._told += len(now)
        piece = Piece(told.text, [token for token, _ in now], finish_reason=reason)
        piece.prompt_tokens, piece.completion_tokens = self._prompt_tokens, self._told
        if self._logprobs:
            piece.logprobs = [TokenLogprob(self._tokenizer.decode([token]), value) for token, value in now]
        if end < len(tokens) and not self._text.stopped:
            piece.end_token = tokens[end]
        return piece
