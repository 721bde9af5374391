"""Has anything rotted?  Reads every byte of every artifact of a recipe again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipeline.record.history import ORDER
from pipeline.runner.store import Store, damage


@dataclass(frozen=True)
class Checked:
    """One artifact's folder and what is wrong with it, by file (nothing: it is whole)."""

    path: Path
    faults: list[str]


def check(store: Store, tell: Callable[[Checked], None]) -> list[Checked]:
    """Check all artifacts of a recipe, telling each result as it is known."""
    found = []
    for stage in ORDER:
        for path in store.artifacts(stage):
            checked = Checked(path, damage(path, deep=True))
            tell(checked)
            found.append(checked)
    return found


def set_aside(store: Store, checked: list[Checked]) -> list[Path]:
    """Move the damaged artifacts to quarantine; the next run makes what it needs of them anew."""
    return [
        store.quarantine(each.path, f"found damaged: {'; '.join(each.faults)}")
        for each in checked
        if each.faults
    ]
