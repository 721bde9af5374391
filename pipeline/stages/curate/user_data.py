"""Ready instruction and preference data that a user brings, checked line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.stages.curate.sources import Quarantine, read_records

ROLES = ("system", "user", "assistant")


def read_instructions(path: Path, quarantine: Quarantine) -> list[dict[str, Any]]:
    """Chat examples ``{"messages": [...]}``; faulty lines go to quarantine."""
    found = []
    for number, record in read_records(path, quarantine):
        fault = chat_fault(record.get("messages"))
        if fault:
            quarantine.add(path, number, fault)
            continue
        quarantine.read_well()
        identifier = f"{path.name}:{number}"
        messages = [{"role": m["role"], "content": m["content"].strip()} for m in record["messages"]]
        found.append({"id": identifier, "messages": messages, "name": identifier, "about": "given"})
    return found


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


def read_preferences(path: Path, quarantine: Quarantine) -> list[dict[str, Any]]:
    """Pairs ``{"prompt", "chosen", "rejected"}``; faulty lines go to quarantine."""
    found = []
    for number, record in read_records(path, quarantine):
        texts = [record.get(key) for key in ("prompt", "chosen", "rejected")]
        if not all(isinstance(text, str) and text.strip() for text in texts):
            quarantine.add(path, number, "'prompt', 'chosen' and 'rejected' must each be text")
            continue
        prompt, chosen, rejected = (str(text).strip() for text in texts)
        if chosen == rejected:
            quarantine.add(path, number, "chosen and rejected are the same")
            continue
        quarantine.read_well()
        identifier = f"{path.name}:{number}"
        found.append(
            {
                "id": identifier,
                "prompt": prompt,
                "chosen": chosen,
                "rejected": rejected,
                "kind": str(record.get("kind", "style"))
                if record.get("kind") in ("style", "content")
                else "given",
                "name": identifier,
            }
        )
    return found
