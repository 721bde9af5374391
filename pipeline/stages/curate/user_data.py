"""Ready instruction and preference data that a user brings, checked line by line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import attributes
from pipeline.stages.curate import chats, preferences
from pipeline.stages.curate.readers import Fault
from pipeline.stages.curate.readers.lines import read_objects
from pipeline.stages.curate.reading import check_share


@dataclass
class UserData:
    """The good records of a user's file with their lines, and the account of the others."""

    role: str
    records: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0

    def check(self, max_share: float) -> None:
        """Raise :class:`InputError` when more than ``max_share`` of the records read are faulty."""
        check_share(self.faults, self.read, max_share)


def read_user_data(
    path: Path, role: str, make: Callable[[str, dict[str, Any]], dict[str, Any] | str], max_bytes: int
) -> UserData:
    """Read a JSONL file; ``make`` gives a record for (id, object), or what is wrong with it."""
    data = UserData(role)
    for found in _objects(path, max_bytes):
        data.read += 1
        line = found.place if isinstance(found, Fault) else found[0]
        made = found.reason if isinstance(found, Fault) else make(f"{path.name}:{found[0]}", found[1])
        if isinstance(made, dict):
            data.records.append(made)
            data.lines.append(line)
        else:
            data.faults.append({"input": role, "file": str(path), "line": line, "reason": made})
    return data


def _objects(path: Path, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    if path.stat().st_size == 0:
        yield Fault(0, "the file is empty")
        return
    yield from read_objects(str(path), max_bytes)


def instruction(identifier: str, record: dict[str, Any]) -> dict[str, Any] | str:
    """A chat example in one of the usual forms (:mod:`.chats`), or what is wrong with it."""
    chat, fault = chats.normalise(record)
    if chat is None:
        return str(fault)
    values, fault = attributes.of_record(record)
    if fault is not None:
        return fault
    described = {"attributes": values} if values else {}
    return {"id": identifier, **chat, "name": identifier, "about": "given", **described}


def preference(identifier: str, record: dict[str, Any]) -> dict[str, Any] | str:
    """A pair in one of the usual forms (:mod:`.preferences`), or what is wrong with it."""
    pair, fault = preferences.normalise(record)
    if pair is None:
        return str(fault)
    kind = str(record["kind"]) if record.get("kind") in ("style", "content") else "given"
    return {"id": identifier, **pair, "kind": kind, "name": identifier}


def scored(identifier: str, record: dict[str, Any]) -> dict[str, Any] | str:
    """A record of scored answers as it is; :func:`.preferences.pairs_from_scores` judges it."""
    return record


def as_chat(record: dict[str, Any]) -> dict[str, Any]:
    """A chat example, or a preference pair with its chosen answer, as a chat."""
    if "messages" in record:
        return {"messages": record["messages"]}
    prompt = record["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*turns, {"role": "assistant", "content": record["chosen"]}]}
