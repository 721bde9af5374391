"""Figures as a person writes them: one file, 1.2M parameters, no change of -0.0 points.  Standard library only."""

from __future__ import annotations


def counted(number: int, one: str, many: str | None = None) -> str:
    """``1 file``, ``2,000 files``; ``many`` where it is not ``one`` with an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def parameters(number: int) -> str:
    """How large a model is, to three digits: ``948,000``, ``1.32M``, ``8.03B``, ``405B``; small ones to the last."""
    if number < 10_000:
        return f"{number:,}"
    for unit, size in (("B", 1e9), ("M", 1e6)):
        # What would be written as 1,000 of the smaller unit is one of the larger.
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{unit}"
    return f"{round(number, -3):,}"


def fixed(value: float, digits: int, sign: bool = False) -> str:
    """A number with so many digits behind the point, and without the sign of a nought that was rounded: never -0.0."""
    return f"{round(value, digits) + 0.0:{'+' if sign else ''}.{digits}f}"
