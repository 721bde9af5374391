"""JSON as RFC 8259 has it: Python's own writes and reads NaN and Infinity, which no other reader takes.

Everything that this project writes goes through :func:`dumps`, and its own records are read by
:func:`loads`, so that a figure that is no number is found where it is made.  Standard library only.
"""

from __future__ import annotations

import json
import math
from typing import Any

DEEPEST = 100  # levels of lists and objects; a manifest has 8, a model's configuration 5


class NotFinite(ValueError):
    """A value that JSON cannot carry: NaN or an infinity."""


def dumps(value: Any, **options: Any) -> str:
    """``json.dumps``; raises :class:`NotFinite` with the place of a number that is not finite."""
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError as error:
        if "circular" in str(error).lower():
            raise
        raise NotFinite(
            f"{not_finite(value)} is not a finite number, and cannot be written as JSON"
        ) from None


def loads(text: str | bytes) -> Any:
    """``json.loads``; raises :class:`NotFinite` where the text holds NaN or an infinity, ``ValueError`` where it is nested too deep."""
    try:
        found = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if deeper(found, DEEPEST):
        raise ValueError(f"it is nested more than {DEEPEST} levels deep")
    return found


def deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested deeper than so many levels; without recursion, which ends at a thousand."""
    layer = [value]
    while layer and levels >= 0:
        layer = [
            inner
            for each in layer
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
            if isinstance(inner, dict | list)
        ]
        levels -= 1
    return bool(layer)


def not_finite(value: Any, place: str = "") -> str | None:
    """The place of the first number in a plain value that is not finite, e.g. ``metrics.loss = nan``."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{place or 'the value'} = {value}"
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list | tuple):
        inside = list(enumerate(value))
    found = (not_finite(each, f"{place}.{key}" if place else str(key)) for key, each in inside)
    return next((fault for fault in found if fault), None)


def _refuse(constant: str) -> None:
    raise NotFinite(f"{constant} is not JSON")
