"""Answered requests, one JSON line each, found again by what was asked."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import strict_json


@dataclass(frozen=True)
class Answer:
    """What a model answered, and the tokens that the server counted."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class Ledger:
    """An append-only file; what stands in it was paid for and is not asked again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Answer] = {}
        self._prompt = self._completion = 0
        if path.exists():
            self._read()
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the ledger

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]  # a torn last line was never used
        if len(whole) < len(data):
            with open(self.path, "r+b") as handle:
                handle.truncate(len(whole))
        for line in whole.splitlines():
            try:
                record = json.loads(line)
                answer = Answer(
                    str(record["text"]), int(record["prompt_tokens"]), int(record["completion_tokens"])
                )
            except (ValueError, KeyError, TypeError):
                continue  # damaged: that one is asked again
            self._keep(str(record["key"]), answer)

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> Answer | None:
        """The answer to a request that was made before."""
        return self._known.get(key)

    def put(self, key: str, answer: Answer) -> None:
        """Write an answer down, to the disk, before anybody uses it."""
        record = {"key": key, **vars(answer)}
        self._file.write(strict_json.dumps(record, ensure_ascii=True) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._keep(key, answer)

    def _keep(self, key: str, answer: Answer) -> None:
        if key not in self._known:
            self._prompt += answer.prompt_tokens
            self._completion += answer.completion_tokens
        self._known[key] = answer

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens of all answers."""
        return (
            self._prompt,
            self._completion,
        )


def request_key(request: dict[str, Any]) -> str:
    """SHA-256 of everything about a request that its answer may depend on."""
    text = strict_json.dumps(request, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
