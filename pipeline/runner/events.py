"""Follow a step's ``events.jsonl`` while it is being written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class EventReader:
    """Reads the whole lines that were added since the last look.

    A torn last line (the step was killed while writing) is left until it is complete; a
    line that never completes is passed over when the next attempt starts its own.
    """

    path: Path
    offset: int = 0

    def new_events(self, until: int | None = None) -> Iterator[dict[str, Any]]:
        """The events that were added since the last call; of those in the file's first ``until`` bytes where it is given."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as handle:
            handle.seek(self.offset)
            data = handle.read(-1 if until is None else max(0, until - self.offset))
        end = data.rfind(b"\n") + 1
        self.offset += end
        for line in data[:end].splitlines():
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                continue  # the torn line of a killed attempt, glued to nothing readable
            if isinstance(event, dict):
                yield event
