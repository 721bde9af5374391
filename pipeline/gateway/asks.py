"""What every protocol of the gateway turns a request into, and what it gets back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Caller:
    """Who asks: the name of an API key, or an address where there are no keys.

    ``cut`` breaks the connection that the question came by, whatever is being sent over it.
    """

    name: str
    cut: Callable[[], object] = field(default=lambda: None, compare=False)


@dataclass(frozen=True)
class Ask:
    """One request.

    ``model`` is a name that clients use; ``inputs`` are the inputs of the client contract
    (``deploy/triton/contract/parameters.py``) but for ``stream`` and ``lora``, which the gateway sets;
    ``api`` is what the metrics call the protocol (chat, completions, generate, infer, grpc).  ``weight``: as how many
    requests it is admitted; 0 where it is one of several that are admitted together.
    """

    model: str
    inputs: dict[str, Any]
    api: str
    weight: int = 1


@dataclass(frozen=True)
class Event:
    """A part of an answer.

    The first event comes when the model has taken the request: it has ``prompt_tokens`` and no text.  The last one
    has a ``finish_reason`` (stop, length, cancelled).  ``completion_tokens`` counts from the beginning of the answer.
    ``logprobs``: token text and natural logarithm of its probability, for the tokens of this part.
    ``text`` is whole characters, always.
    """

    text: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: list[tuple[str, float]] = field(default_factory=list)
