"""What a version must answer before any client asks it: prompts of the export's parity check.

The export keeps some held-out questions with the answers that the exported model gave when it was held to the trained
one (``probes.json``).  The same questions go to the server; it must give the same answers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from pipeline.serving.client import ServingError, events
from pipeline.serving.server import ServerRecord

TIMEOUT_S = 120.0
TIES = 1
# As the comparison at export was made: the likeliest token, without what the model's own defaults add.
PLAIN: dict[str, Any] = {
    "temperature": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
UNREADABLE = re.compile(
    "\ufffd+"
)  # detokenizers show bytes that are no text with one such character or with several


def check(record: ServerRecord, export: Path, most: int) -> tuple[int, list[str]]:
    """Ask ``most`` of the export's questions; returns how many were asked and what is wrong, in words.

    The engine that answers is the one that answered at the export: of each model one answer may differ, at a tie that
    another batch breaks otherwise; none may be empty that was not.
    """
    plain: dict[str, Any] = json.loads((export / "probes.json").read_text(encoding="utf-8"))
    asked = plain["answers"][:most]
    different: dict[str, list[str]] = {}
    for each in asked:
        try:
            got = "".join(
                event["text_output"]
                for event in events(
                    record.address,
                    each["model"],
                    messages=each["messages"],
                    max_tokens=plain["tokens"],
                    timeout=TIMEOUT_S,
                    **PLAIN,
                )
            )
        except ServingError as error:
            return len(asked), [f"a parity prompt was not answered: {error}"]
        if UNREADABLE.sub("\ufffd", got) != UNREADABLE.sub("\ufffd", each["text"]):
            different.setdefault(each["model"], []).append(f"{each['text']!r} became {got!r}")
            if not got:
                return len(asked), [f"{each['model']} answers a parity prompt with nothing"]
    return len(asked), [
        f"{model} answers {len(found)} of {len(asked)} parity prompts differently than at the export (at most "
        f"{TIES} may be); the first: {found[0]}"
        for model, found in different.items()
        if len(found) > TIES
    ]
