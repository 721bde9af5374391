"""Numbers as a person types them on a command line: ``7B``, ``1.5T``, ``3e13``."""

from __future__ import annotations

import math
import re

from pipeline.errors import UserError

SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12, "P": 1e15}
FORM = re.compile(r"\s*([-+]?[0-9.][0-9.,_]*(?:[eE][-+]?[0-9]+)?)\s*([kKMBGTP]?)\s*")


def amount(text: str, option: str, *, zero: bool = False) -> float:
    """A positive finite number with an optional suffix; ``zero`` allows 0.

    Raises :class:`UserError` that names ``option``.
    """
    found = FORM.fullmatch(text)
    try:
        value = (
            float(found[1].replace(",", "").replace("_", "")) * SUFFIXES[found[2].upper()] if found else None
        )
    except ValueError:
        value = None
    if value is None:
        raise UserError(f"{option} {text}: not a number; write it as 7B, 1.5T or 3e13")
    return positive(value, option, zero=zero)


def positive(value: float, option: str, *, zero: bool = False) -> float:
    """``value`` when it is finite and above zero (or zero, where ``zero`` allows it), else :class:`UserError`."""
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise UserError(
            f"{option} {value:g}: must be {'zero or more' if zero else 'more than zero'} and finite"
        )
    return value


def within(value: float, option: str, least: float, most: float, unit: str = "") -> float:
    """``value`` when it is from ``least`` to ``most``, else :class:`UserError` that says both."""
    if not least <= value <= most:
        raise UserError(f"{option} {value:g}: must be from {least:g} to {most:g}{f' {unit}' if unit else ''}")
    return value


def share(value: float, option: str) -> float:
    """``value`` when it is above 0 and at most 1, else :class:`UserError`."""
    if not 0 < value <= 1:
        raise UserError(f"{option} {value:g}: must be a share above 0 and at most 1")
    return value
