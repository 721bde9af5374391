"""Ready instruction and preference data that a user brings, checked line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.stages.curate.readers import Fault
from pipeline.stages.curate.readers.lines import read_objects

ROLES = ("system", "user", "assistant")


@dataclass
class UserData:
    """The good records of a user's file, and the account of the others."""

    role: str
    records: list[dict[str, Any]] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """Records read and unreadable."""
        return {"records": len(self.records), "unreadable": len(self.faults)}


def read_user_data(
    path: Path, role: str, make: Callable[[str, dict[str, Any]], dict[str, Any] | str], max_bytes: int
) -> UserData:
    """Read a JSONL file; ``make`` gives a record for (id, object), or what is wrong with it."""
    data = UserData(role)
    for found in _objects(path, max_bytes):
        made = found.reason if isinstance(found, Fault) else make(f"{path.name}:{found[0]}", found[1])
        if isinstance(made, dict):
            data.records.append(made)
        else:
            line = found.place if isinstance(found, Fault) else found[0]
            data.faults.append({"input": role, "file": str(path), "line": line, "reason": made})
    return data


def _objects(path: Path, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    if path.stat().st_size == 0:
        yield Fault(0, "the file is empty")
        return
    yield from read_objects(str(path), max_bytes)


def instruction(identifier: str, record: dict[str, Any]) -> dict[str, Any] | str:
    """A chat example ``{"messages": [...]}``, or what is wrong with it."""
    fault = chat_fault(record.get("messages"))
    if fault:
        return fault
    messages = [{"role": m["role"], "content": m["content"].strip()} for m in record["messages"]]
    return {"id": identifier, "messages": messages, "name": identifier, "about": "given"}


def chat_fault(messages: Any) -> str | None:
    """What is wrong with a chat example, or None: turns alternate and end with the assistant."""
    if not isinstance(messages, list) or not messages:
        return "'messages' is missing, empty or not a list"
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return f"a message needs a role out of {', '.join(ROLES)}"
        if not isinstance(message.get("content"), str) or not message["content"].strip():
            return "a message has no text content"
    turns = [m["role"] for m in messages if m["role"] != "system"]
    if turns != ["user", "assistant"] * (len(turns) // 2) or not turns:
        return "the turns must alternate, user first, and end with the assistant"
    return None


def preference(identifier: str, record: dict[str, Any]) -> dict[str, Any] | str:
    """A pair ``{"prompt", "chosen", "rejected"}``, or what is wrong with it."""
    texts = [record.get(key) for key in ("prompt", "chosen", "rejected")]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        return "'prompt', 'chosen' and 'rejected' must each be text"
    prompt, chosen, rejected = (str(text).strip() for text in texts)
    if chosen == rejected:
        return "chosen and rejected are the same"
    kind = str(record["kind"]) if record.get("kind") in ("style", "content") else "given"
    return {
        "id": identifier,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "kind": kind,
        "name": identifier,
    }
