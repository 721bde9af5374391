"""What one request may ask for, and what is wrong with a request that asks otherwise.

No value is ignored: an unknown name or a value out of range is an error that says what
was expected.  Standard library only.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant")
SCALARS = ("text_input", "messages", "stream", "max_tokens", "temperature", "top_p", "top_k",
           "repetition_penalty", "seed")  # fmt: skip
NAMES = (*SCALARS, "stop_words")
LARGEST_SEED = 2**32 - 1


class RequestError(ValueError):
    """The request asks for something that cannot be given; told to the client as is."""


@dataclass
class Parameters:
    """One request, checked.  ``None`` means: as the model's generation defaults say."""

    messages: list[dict[str, str]]
    stream: bool = False
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop_words: list[str] = field(default_factory=list)


def parse(values: dict[str, Any]) -> Parameters:
    """Check the values of one request, by input name.  Raises :class:`RequestError`."""
    unknown = sorted(set(values) - set(NAMES))
    if unknown:
        raise RequestError(f"unknown parameter {unknown[0]!r}; the parameters are {', '.join(NAMES)}")
    return Parameters(
        messages=_messages(values.get("text_input"), values.get("messages")),
        stream=bool(values.get("stream", False)),
        max_tokens=_bounded(values, "max_tokens", at_least=1),
        temperature=_bounded(values, "temperature", at_least=0.0, at_most=100.0),
        top_p=_bounded(values, "top_p", above=0.0, at_most=1.0),
        top_k=_bounded(values, "top_k", at_least=1),
        repetition_penalty=_bounded(values, "repetition_penalty", above=0.0, at_most=100.0),
        seed=_bounded(values, "seed", at_least=0, at_most=LARGEST_SEED),
        stop_words=_stop_words(values.get("stop_words", [])),
    )


def _messages(text: str | None, encoded: str | None) -> list[dict[str, str]]:
    if (text is None) == (encoded is None):
        raise RequestError("give either text_input (one question) or messages (a conversation), not both")
    if text is not None:
        if not text.strip():
            raise RequestError("text_input is empty")
        return [{"role": "user", "content": text}]
    assert encoded is not None
    try:
        messages = json.loads(encoded)
    except json.JSONDecodeError as error:
        raise RequestError(f"messages is not JSON: {error}") from None
    if not isinstance(messages, list) or not messages:
        raise RequestError('messages must be a JSON list such as [{"role": "user", "content": "..."}]')
    for place, message in enumerate(messages):
        if (
            not isinstance(message, dict)
            or set(message) != {"role", "content"}
            or message["role"] not in ROLES
            or not isinstance(message["content"], str)
        ):
            raise RequestError(
                f"messages[{place}] must have a role ({', '.join(ROLES)}) and a content (text), no more"
            )
    if messages[-1]["role"] != "user":
        raise RequestError("the last of messages must be the user's")
    return messages


def _bounded(
    values: dict[str, Any],
    name: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
) -> Any:
    value = values.get(name)
    if value is None:
        return None
    wanted = []
    if at_least is not None:
        wanted.append(f"at least {at_least:g}")
    if above is not None:
        wanted.append(f"more than {above:g}")
    if at_most is not None:
        wanted.append(f"at most {at_most:g}")
    if (
        not math.isfinite(value)
        or (at_least is not None and value < at_least)
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
    ):
        raise RequestError(f"{name} is {value:g}; it must be {' and '.join(wanted)}")
    return value


def _stop_words(words: list[str]) -> list[str]:
    if any(not word for word in words):
        raise RequestError("stop_words holds an empty word")
    return list(words)
