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
SCALARS = ("text_input", "messages", "prompt", "stream", "max_tokens", "min_tokens", "temperature", "top_p",
           "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "ignore_end",
           "logprobs", "request_id", "cancel", "lora")  # fmt: skip
NAMES = (*SCALARS, "stop_words")
LARGEST_SEED = 2**32 - 1
MOST_STOP_WORDS = 16
LONGEST_ID = 256


class RequestError(ValueError):
    """The request asks for something that cannot be given; told to the client as is."""


@dataclass
class Parameters:
    """One request, checked.  ``None`` means: as the model's generation defaults say.

    ``prompt`` is text that goes to the model as it is; without it ``messages`` go through
    the chat template.  ``cancel`` asks for the end of the running request of that ``request_id``.
    """

    messages: list[dict[str, str]]
    prompt: str | None = None
    stream: bool = False
    max_tokens: int | None = None
    min_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_end: bool = False
    logprobs: bool = False
    request_id: str = ""
    cancel: bool = False
    lora: str | None = None
    stop_words: list[str] = field(default_factory=list)


def parse(values: dict[str, Any]) -> Parameters:
    """Check the values of one request, by input name.  Raises :class:`RequestError`."""
    unknown = sorted(set(values) - set(NAMES))
    if unknown:
        raise RequestError(f"unknown parameter {unknown[0]!r}; the parameters are {', '.join(NAMES)}")
    request_id = values.get("request_id", "")
    if len(request_id) > LONGEST_ID:
        raise RequestError(f"request_id has {len(request_id)} characters; it may have {LONGEST_ID}")
    if values.get("cancel", False):
        if not request_id:
            raise RequestError("cancel needs the request_id of what is to end")
        return Parameters(messages=[], request_id=request_id, cancel=True)
    return Parameters(
        messages=_messages(values),
        prompt=values.get("prompt"),
        stream=bool(values.get("stream", False)),
        max_tokens=_bounded(values, "max_tokens", at_least=1),
        min_tokens=_bounded(values, "min_tokens", at_least=0),
        temperature=_bounded(values, "temperature", at_least=0.0, at_most=100.0),
        top_p=_bounded(values, "top_p", above=0.0, at_most=1.0),
        top_k=_bounded(values, "top_k", at_least=1),
        repetition_penalty=_bounded(values, "repetition_penalty", at_least=0.01, at_most=100.0),
        presence_penalty=_bounded(values, "presence_penalty", at_least=-2.0, at_most=2.0),
        frequency_penalty=_bounded(values, "frequency_penalty", at_least=-2.0, at_most=2.0),
        seed=_bounded(values, "seed", at_least=0, at_most=LARGEST_SEED),
        ignore_end=bool(values.get("ignore_end", False)),
        logprobs=bool(values.get("logprobs", False)),
        request_id=request_id,
        lora=values.get("lora") or None,
        stop_words=_stop_words(values.get("stop_words", [])),
    )


def _messages(values: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation; empty where the text goes to the model as it is."""
    text, encoded, prompt = (values.get(name) for name in ("text_input", "messages", "prompt"))
    if [text, encoded, prompt].count(None) != 2:
        raise RequestError(
            "give one of text_input (a question), messages (a conversation) and prompt (text as it is)"
        )
    if prompt is not None:
        if not prompt:
            raise RequestError("prompt is empty")
        _unicode("prompt", prompt)
        return []
    if text is not None:
        if not text.strip():
            raise RequestError("text_input is empty")
        return [{"role": "user", "content": _unicode("text_input", text)}]
    assert encoded is not None
    try:
        messages = json.loads(encoded)
    except (json.JSONDecodeError, RecursionError) as error:
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
        _unicode(f"messages[{place}]", message["content"])
    if messages[-1]["role"] != "user":
        raise RequestError("the last of messages must be the user's")
    return messages


def _unicode(name: str, text: str) -> str:
    """JSON can spell half a character (a lone surrogate), which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError(f"{name} is not Unicode text: it holds half of a surrogate pair") from None
    return text


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
        # Numbers come in 32 bits: 0.01 as 0.0099999998.
        or (at_least is not None and value < at_least - 1e-6 * abs(at_least))
        or (above is not None and value <= above)
        or (at_most is not None and value > at_most)
    ):
        raise RequestError(f"{name} is {value:g}; it must be {' and '.join(wanted)}")
    return value


def _stop_words(words: list[str]) -> list[str]:
    if any(not word for word in words):
        raise RequestError("stop_words holds an empty word")
    if len(words) > MOST_STOP_WORDS:
        raise RequestError(f"there are {len(words)} stop_words; there may be {MOST_STOP_WORDS}")
    return list(words)
