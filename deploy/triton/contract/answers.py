"""What an engine gives, and who takes it: the seam between the contract and what generates.

``model.py`` (Triton's side) knows no engine but by this file, and an engine knows nothing of Triton.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from parameters import Parameters

STOP, LENGTH, CANCELLED = "stop", "length", "cancelled"


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token: its text as it stands alone, and the natural logarithm of its probability."""

    token: str
    logprob: float


@dataclass
class Piece:
    """A part of an answer.  ``finish_reason`` (stop, length, cancelled) is set on the last one.

    The first piece has ``prompt_tokens`` alone: the engine has taken the request.  A stream begins with it, because
    Triton notices only after a first response that an HTTP client has gone.

    ``tokens`` are the ids that this piece adds, ``logprobs`` as many, where they were asked for, and ``completion_tokens``
    counts them from the beginning of the answer.  ``end_token`` is the one that ended it, which is not among them.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    end_token: int | None = None
    error: str = ""

    @property
    def last(self) -> bool:
        return bool(self.finish_reason or self.error)


class Receiver(Protocol):
    """Whoever waits for an answer."""

    def __call__(self, piece: Piece) -> bool:
        """Take a piece; returns False when nobody wants the rest of the answer."""

    def is_cancelled(self) -> bool:
        """Whether the client has gone; for as long as the answer is not over.  A round trip to Triton's process."""


def told(receiver: Receiver, why: Callable[[], str]) -> Callable[[Future[None]], None]:
    """For a future's end: whoever waits for an answer that was given up before it began hears of it."""

    def ended(answer: Future[None]) -> None:
        if answer.cancelled():
            receiver(Piece(error=why()))

    return ended


class Engine(Protocol):
    """A loaded model.  All methods may be called from any thread."""

    def submit(self, request: Parameters, receiver: Receiver) -> None:
        """Queue a request; ``receiver`` gets its pieces, the last one marked.

        Raises :class:`parameters.RequestError` when it cannot be served.
        """

    def close(self) -> None:
        """End; requests still running are told so."""
