"""Answers in OpenAI's shapes: whole, and in parts as server-sent events.

A part is written once a token, so what is the same in all parts of an answer is encoded once, and a part is
put together of strings; encoding the whole object each time is many times the work.

https://platform.openai.com/docs/api-reference/chat/streaming
"""

from __future__ import annotations

import json
import time
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pipeline.gateway.asks import Event

DONE = b"data: [DONE]\n\n"
LEAST = -9999.0  # OpenAI's number for a probability of nothing; JSON has no infinity
REPLACEMENT = "\ufffd"  # stands in a token's text for bytes that are no character alone

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass
class Choice:
    """What has come of one choice so far."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    begun: bool = False
    characters: int = 0  # of the tokens told of with their probabilities

    def count(self, event: Event) -> None:
        """Note an event's counts; those that it leaves out stay as they were."""
        self.prompt_tokens = event.prompt_tokens or self.prompt_tokens
        self.completion_tokens = event.completion_tokens or self.completion_tokens

    def add(self, event: Event) -> None:
        """Keep an event for the whole answer."""
        self.count(event)
        self.texts.append(event.text)
        self.logprobs += event.logprobs
        self.finish_reason = event.finish_reason


class Answer(ABC):
    """One answer being written; the classes below say in which of the two shapes.

    ``choices`` in all, ``per_prompt`` of each prompt.  ``logprobs``: None where they were not asked for, else
    how many alternatives (0 or 1; the one is the chosen token, see :mod:`.requests`).
    """

    prefix: ClassVar[str]
    kind: ClassVar[str]
    part_kind: ClassVar[str]

    def __init__(
        self,
        answer_id: str,
        model: str,
        fingerprint: str,
        *,
        choices: int,
        per_prompt: int,
        logprobs: int | None,
        include_usage: bool,
    ) -> None:
        self.choices = [Choice() for _ in range(choices)]
        self.include_usage = include_usage
        self._per_prompt = per_prompt
        self._logprobs = logprobs
        self._id = answer_id
        self._shared = {"created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
        start = encode({"id": answer_id, "object": self.part_kind, **self._shared})
        self._head = f'data: {start[:-1]},"choices":['
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"

    @classmethod
    def new_id(cls) -> str:
        """An id that no other answer has, and nobody can guess."""
        return f"{cls.prefix}-{uuid.uuid4().hex}"

    def whole(self) -> bytes:
        """The answer at once, all its events having been added to its choices."""
        choices = [
            {
                "index": index,
                **self._content("".join(choice.texts)),
                "logprobs": None if self._logprobs is None else self._probabilities(choice.logprobs, 0),
                "finish_reason": choice.finish_reason,
            }
            for index, choice in enumerate(self.choices)
        ]
        found = {"id": self._id, "object": self.kind, **self._shared, "choices": choices}
        return encode({**found, "usage": self._usage()}).encode()

    def part(self, index: int, event: Event) -> bytes:
        """An event of one choice as a server-sent event; nothing where there is nothing to say."""
        choice = self.choices[index]
        delta = self._delta(event, not choice.begun)
        choice.begun = True
        choice.count(event)
        if not delta:
            return b""
        logprobs = "null"
        if event.logprobs and self._logprobs is not None:
            logprobs = encode(self._probabilities(event.logprobs, choice.characters))
            choice.characters += sum(len(token) for token, _ in event.logprobs)
        reason = f'"{event.finish_reason}"' if event.finish_reason else "null"
        return (
            f'{self._head}{{"index":{index},{delta},"logprobs":{logprobs},"finish_reason":{reason}}}{self._tail}'
        ).encode()

    def usage_part(self) -> bytes:
        """The last event before the end, where the client wants the token counts."""
        return f'{self._head}],"usage":{encode(self._usage())}}}\n\n'.encode()

    def _usage(self) -> dict[str, int]:
        # The choices of a prompt share it.
        prompt = sum(choice.prompt_tokens for choice in self.choices[:: self._per_prompt])
        completion = sum(choice.completion_tokens for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    @abstractmethod
    def _content(self, text: str) -> dict[str, Any]:
        """The text in a choice of a whole answer."""

    @abstractmethod
    def _delta(self, event: Event, first: bool) -> str:
        """The text in a choice of a part, as JSON without braces; empty where there is no use in a part."""

    @abstractmethod
    def _probabilities(self, tokens: list[tuple[str, float]], offset: int) -> dict[str, Any]:
        """The ``logprobs`` of a choice; ``offset`` characters of tokens came before."""


class ChatAnswer(Answer):
    """Of POST /v1/chat/completions.  The first part of a choice has its role, as at OpenAI."""

    prefix, kind, part_kind = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def _content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, event: Event, first: bool) -> str:
        if first:
            return f'"delta":{{"role":"assistant","content":{encode(event.text)},"refusal":null}}'
        if event.text or event.logprobs:
            return f'"delta":{{"content":{encode(event.text)}}}'
        return '"delta":{}' if event.finish_reason else ""

    def _probabilities(self, tokens: list[tuple[str, float]], offset: int) -> dict[str, Any]:
        content = []
        for token, logprob in tokens:
            # A token that is part of a character has bytes that its text does not tell.
            known = None if REPLACEMENT in token else list(token.encode())
            found = {"token": token, "logprob": max(logprob, LEAST), "bytes": known}
            content.append({**found, "top_logprobs": [found] if self._logprobs else []})
        return {"content": content, "refusal": None}


class CompletionAnswer(Answer):
    """Of POST /v1/completions.  Choice ``p * n + i`` is the i-th of the p-th prompt."""

    prefix, kind, part_kind = "cmpl", "text_completion", "text_completion"

    def _content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _delta(self, event: Event, first: bool) -> str:
        wanted = event.text or event.logprobs or event.finish_reason
        return f'"text":{encode(event.text)}' if wanted else ""

    def _probabilities(self, tokens: list[tuple[str, float]], offset: int) -> dict[str, Any]:
        offsets = []
        for token, _ in tokens:
            offsets.append(offset)
            offset += len(token)
        values = [max(logprob, LEAST) for _, logprob in tokens]
        likeliest = [{token: value} for (token, _), value in zip(tokens, values, strict=True)]
        return {
            "tokens": [token for token, _ in tokens],
            "token_logprobs": values,
            "top_logprobs": likeliest if self._logprobs else None,
            "text_offset": offsets,
        }
