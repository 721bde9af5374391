"""What came out of making synthetic data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Generated:
    """What came out: new pre-training documents, instruction and preference records, and the account."""

    documents: list[dict[str, Any]] = field(default_factory=list)
    instructions: list[dict[str, Any]] = field(default_factory=list)
    preferences: list[dict[str, Any]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    figures: dict[str, Any] = field(default_factory=dict)
