"""Ready instruction and preference data that a user brings, checked line by line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import attributes
from pipeline.stages.curate import chats, preferences
from pipeline.stages.curate.fields import Noted, count_unused
from pipeline.stages.curate.readers import EMPTY_FILE, Fault
from pipeline.stages.curate.readers.records import read_records
from pipeline.stages.curate.reading import check_share


@dataclass
class UserData:
    """The good records of a user's file with their lines, and the account of the others.

    ``unused`` counts the keys of good records that say something and are not used.
    """

    role: str
    records: list[dict[str, Any]] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0
    unused: Counter[str] = field(default_factory=Counter)

    def check(self, max_share: float) -> None:
        """Raise :class:`InputError` when more than ``max_share`` of the records read are faulty."""
        check_share(self.faults, self.read, max_share)


def read_user_data(
    path: Path, role: str, make: Callable[[str, Noted], dict[str, Any] | str], max_bytes: int
) -> UserData:
    """Read a user's file; ``make`` gives a record for (id, object), or what is wrong with it."""
    data = UserData(role)
    for found in _objects(path, max_bytes):
        data.read += 1
        if isinstance(found, Fault):
            line, noted = found.place, None
            made: dict[str, Any] | str = found.reason
        else:
            line, noted = found[0], Noted(found[1])
            made = make(f"{path.name}:{line}", noted)
        if isinstance(made, dict):
            data.records.append(made)
            data.lines.append(line)
            if noted is not None and make is not scored:  # those are judged later
                count_unused(noted, data.unused)
        else:
            data.faults.append({"input": role, "file": str(path), "line": line, "reason": made})
    return data


def _objects(path: Path, max_bytes: int) -> Iterator[tuple[int, dict[str, Any]] | Fault]:
    if path.stat().st_size == 0:
        yield Fault(0, EMPTY_FILE)
        return
    yield from read_records(str(path), max_bytes)


def instruction(identifier: str, record: Noted) -> dict[str, Any] | str:
    """A chat example in one of the usual forms (:mod:`.chats`), or what is wrong with it."""
    chat, fault = chats.normalise(record)
    if chat is None:
        return str(fault)
    values, fault = attributes.of_record(record.record)
    if fault is not None:
        return fault
    if values:
        given = record.record.get("attributes") is not None
        record.used |= {"attributes"} if given else set(attributes.HELPSTEER)
    described = {"attributes": values} if values else {}
    return {"id": identifier, **chat, "name": identifier, "about": "given", **described}


def preference(identifier: str, record: Noted) -> dict[str, Any] | str:
    """A pair in one of the usual forms (:mod:`.preferences`), or what is wrong with it."""
    pair, fault = preferences.normalise(record)
    if pair is None:
        return str(fault)
    kind = "given"
    if record.record.get("kind") in ("style", "content"):
        kind = str(record["kind"])
    return {"id": identifier, **pair, "kind": kind, "name": identifier}


def scored(identifier: str, record: Noted) -> dict[str, Any] | str:
    """A record of scored answers as it is; :func:`.preferences.pairs_from_scores` judges it."""
    return dict(record.record)


def as_chat(record: dict[str, Any]) -> dict[str, Any]:
    """A chat example, or a preference pair with its chosen answer, as a chat."""
    if "messages" in record:
        return {"messages": record["messages"]}
    prompt = record["prompt"]
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return {"messages": [*turns, {"role": "assistant", "content": record["chosen"]}]}
