"""A number that can say where it is from: value, unit, formula, what went in, and the source.

Everything that the planner prints is a :class:`Quantity`.  ``--explain`` prints its derivation as a
tree, down to what was given; ``--json`` writes the same for machines.  Units are spelled as a reader
would: ``B``, ``FLOP``, ``FLOP/s``, ``token``, ``token/s``, ``s``, ``h``, ``USD``, ``W``, or empty for a plain
ratio; :func:`words` brings a value to a size that can be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Steps of a thousand; money, hours and plain ratios keep their size.
PREFIXES = (
    (1e24, "Y"),
    (1e21, "Z"),
    (1e18, "E"),
    (1e15, "P"),
    (1e12, "T"),
    (1e9, "G"),
    (1e6, "M"),
    (1e3, "k"),
)
COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
COUNTED = ("parameter", "token", "sample")


@dataclass(frozen=True)
class Quantity:
    """One number of a plan and its derivation.

    ``formula`` is in words and symbols whose values stand in ``inputs``; ``source`` is the paper, page, file or
    measurement that the formula, or a number that was given, is from.
    """

    name: str
    value: float
    unit: str = ""
    formula: str = ""
    inputs: tuple[Quantity, ...] = ()
    source: str = ""

    def __str__(self) -> str:
        return words(self.value, self.unit)

    def derivation(self, depth: int = 0, seen: set[Quantity] | None = None) -> Iterator[str]:
        """Lines of the derivation, what it rests on indented below; what is in ``seen`` is not derived again."""
        formula = f" = {self.formula}" if self.formula else ""
        source = f"  [{self.source}]" if self.source else ""
        line = f"{'  ' * depth}{self.name}: {self}"
        if self.inputs and seen is not None:
            if self in seen:
                yield f"{line} (above)"
                return
            seen.add(self)
        yield f"{line}{formula}{source}"
        for given in self.inputs:
            yield from given.derivation(depth + 1, seen)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``: infinities and NaN, which JSON lacks, as null."""
        found: dict[str, Any] = {
            "name": self.name,
            "value": self.value if math.isfinite(self.value) else None,
            "unit": self.unit,
        }
        if self.formula:
            found["formula"] = self.formula
        if self.source:
            found["source"] = self.source
        if self.inputs:
            found["inputs"] = [given.as_dict() for given in self.inputs]
        return found


def given(name: str, value: float, unit: str = "", source: str = "") -> Quantity:
    """A number that is not derived: a setting, a constant, a measurement."""
    return Quantity(name, value, unit, source=source)


def total(name: str, parts: tuple[Quantity, ...], source: str = "") -> Quantity:
    """The sum of ``parts``, which have one unit."""
    units = {part.unit for part in parts}
    assert len(units) == 1, units
    return Quantity(name, math.fsum(part.value for part in parts), units.pop(), "sum", parts, source)


def words(value: float, unit: str = "") -> str:
    """A value as a reader wants it: ``1.46 TFLOP/s``, ``8.03B parameter``, ``2.5 h``, ``USD 1,204``."""
    if not math.isfinite(value):
        return f"{value} {unit}".rstrip()
    if unit in ("USD", "EUR"):
        return f"{unit} {value:,.0f}" if abs(value) >= 100 else f"{unit} {value:,.4g}"
    if unit == "FLOP":  # of a whole training run, as papers write it
        return f"{value:.3g} FLOP"
    if unit == "s" and value >= 60:
        return _duration(value)
    if unit == "s" and 0 < value < 1:
        return f"{value * 1e3:.3g} ms"
    if unit == "" or unit == "h":
        return f"{value:,.0f} {unit}".rstrip() if abs(value) >= 1000 else f"{value:.4g} {unit}".rstrip()
    counted = unit.partition("/")[0] in COUNTED
    for size, prefix in COUNTS if counted else PREFIXES:
        if abs(value) >= size:
            scaled = value / size
            text = f"{scaled:,.0f}" if scaled >= 1000 else f"{scaled:.3g}"
            return f"{text}{prefix} {unit}" if counted else f"{text} {prefix}{unit}"
    return f"{value:.4g} {unit}"


def _duration(seconds: float) -> str:
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if minutes < 120:
        return f"{minutes:.3g} min"
    return f"{hours:.3g} h" if hours < 96 else f"{days:,.3g} days"
