"""What GPU-hours cost: money from the user's own price table, and energy.

    hourly("h100")                        # USD an hour of one GPU, with date and source
    cost(hours, "H100-80GB")              # USD of so many GPU-hours
    energy(hours, gpu)                    # Wh: GPU-hours x power x utilisation x PUE

The table is ``configs/prices.yaml``, or the file that LIFECYCLE_PRICES names.  Power usage effectiveness (PUE) is a data centre's
power over its machines' (The Green Grid 2007); only GPUs are counted, not their hosts and switches, which draw more
besides.
"""

from __future__ import annotations

import datetime
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.plan import hardware
from pipeline.plan.hardware import Gpu
from pipeline.plan.quantity import Quantity, given
from pipeline.positions import table

TABLE = Path(__file__).resolve().parents[2] / "configs" / "prices.yaml"
VARIABLE = "LIFECYCLE_PRICES"
PRICE = ("usd_per_gpu_hour", "date", "source")
# Fields of the energy section with the least and the most that make sense.
ENERGY = {
    "usd_per_kwh": (0.0, 100.0),
    "pue": (1.0, 10.0),
    "utilisation": (0.01, 1.5),
    "kg_co2_per_kwh": (0.0, 10.0),
}


@dataclass(frozen=True)
class Price:
    """A GPU-hour's price, when it was read, and who asks for it."""

    usd: float
    date: str
    source: str


@dataclass(frozen=True)
class Prices:
    """The table: prices by the name of :mod:`pipeline.plan.hardware`, and the energy section's numbers."""

    file: Path
    gpus: Mapping[str, Price]
    energy: Mapping[str, float]
    energy_source: str


def prices(path: str | Path | None = None) -> Prices:
    """The price table.  Raises :class:`UserError` for mistakes in it, with the line and field."""
    file = Path(path or os.environ.get(VARIABLE) or TABLE)
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        hint = f" ({VARIABLE} names it)" if path is None and os.environ.get(VARIABLE) else ""
        raise UserError(f"{file}: cannot be read: {error.strerror}{hint}") from None
    return _read(file, changed)


def hourly(gpu_name: str, path: str | Path | None = None) -> Quantity:
    """USD an hour of one GPU of a kind, by name or alias; its source says the date.

    Raises :class:`UserError` for a kind that is unknown or has no price.
    """
    table, kind = prices(path), hardware.gpu(gpu_name)
    found = table.gpus.get(kind.name)
    if found is None:
        raise UserError(
            f"{table.file} has no price of {kind.name}: add it below gpus, with usd_per_gpu_hour, date and source; "
            f"it has: {', '.join(table.gpus)}"
        )
    return given(
        f"{kind.name} an hour", found.usd, "USD", f"{found.source}; {found.date} ({table.file.name})"
    )


def cost(gpu_hours: Quantity, gpu_name: str, path: str | Path | None = None) -> Quantity:
    """USD of so many GPU-hours.  Raises :class:`UserError` as :func:`hourly` does, and for hours below 0."""
    price = hourly(gpu_name, path)
    return Quantity(
        "cost",
        _hours(gpu_hours) * price.value,
        "USD",
        "GPU-hours x price of a GPU-hour",
        (gpu_hours, price),
        price.source,
    )


def energy(gpu_hours: Quantity, gpu: Gpu, path: str | Path | None = None) -> Quantity | None:
    """Wh that so many GPU-hours draw from the grid; None where the table has no PUE or utilisation."""
    table = prices(path)
    if not {"pue", "utilisation"} <= set(table.energy):
        return None
    power = gpu.quantity("power")
    used = given("utilisation", table.energy["utilisation"], source=table.energy_source)
    pue = given("PUE", table.energy["pue"], source=table.energy_source)
    drawn = _hours(gpu_hours) * power.value * used.value * pue.value
    formula = "GPU-hours x power x utilisation x PUE"
    return Quantity("energy", drawn, "Wh", formula, (gpu_hours, power, used, pue), "The Green Grid 2007")


def energy_cost(drawn: Quantity, path: str | Path | None = None) -> Quantity | None:
    """USD of electricity, where it is paid for by itself; None where the table has no price of it."""
    return _times(drawn, "usd_per_kwh", 1e-3, "cost of energy", "USD", prices(path))


def carbon(drawn: Quantity, path: str | Path | None = None) -> Quantity | None:
    """Grams of CO2 equivalent; None where the table does not say the grid's."""
    return _times(drawn, "kg_co2_per_kwh", 1.0, "carbon", "g CO2e", prices(path))


def _times(
    drawn: Quantity, field: str, each_wh: float, name: str, unit: str, table: Prices
) -> Quantity | None:
    if field not in table.energy:
        return None
    each = given(field, table.energy[field], source=table.energy_source)
    return Quantity(
        name,
        drawn.value * each_wh * each.value,
        unit,
        f"energy x {field}",
        (drawn, each),
        table.energy_source,
    )


def _hours(gpu_hours: Quantity) -> float:
    if not 0 <= gpu_hours.value < math.inf:
        raise UserError(f"{gpu_hours.value} GPU-hours: give a number of at least 0")
    return gpu_hours.value


# -------------------------------------------------------------------------------------------- the table


@lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> Prices:
    """The table as it was at a time, so that a file is read once and a changed one again."""
    content, lines = table(file)
    reader = _Reader(file, lines)
    top = reader.section(content, "", ("gpus", "energy"))
    listed = top.get("gpus")
    if not isinstance(listed, dict) or not listed:
        raise reader.fault("gpus", "expected kinds of GPUs, each with usd_per_gpu_hour, date and source")
    found: dict[str, Price] = {}
    for word, fields in listed.items():
        try:
            kind = hardware.gpu(str(word)).name
        except UserError as error:
            raise reader.fault(f"gpus.{word}", str(error)) from None
        found[kind] = reader.price(f"gpus.{word}", fields)
    bill = reader.section(top.get("energy") or {}, "energy", (*ENERGY, "date", "source"))
    said = {
        name: reader.number(f"energy.{name}", bill[name], *ENERGY[name]) for name in ENERGY if name in bill
    }
    source = f"{bill.get('source', 'no source given')}; {bill.get('date', 'no date given')} ({file.name})"
    return Prices(file, found, said, source)


class _Reader:
    """Mistakes in the table are told with its file, line and field."""

    def __init__(self, file: Path, lines: Mapping[str, int]) -> None:
        self.file, self.lines = file, lines

    def fault(self, path: str, words: str) -> UserError:
        line = next((self.lines[key] for key in (path, path.rpartition(".")[0]) if key in self.lines), None)
        return UserError(f"{self.file}{f':{line}' if line else ''}: {path or 'the file'}: {words}")

    def section(self, content: Any, path: str, known: tuple[str, ...]) -> dict[str, Any]:
        if not isinstance(content, dict):
            raise self.fault(path, f"expected fields: {', '.join(known)}")
        for key in content:
            if key not in known:
                where = f"{path}.{key}" if path else str(key)
                raise self.fault(where, f"is no field; there are: {', '.join(known)}")
        return content

    def price(self, path: str, fields: Any) -> Price:
        entry = self.section(fields, path, PRICE)
        for key in PRICE:
            if entry.get(key) in (None, ""):
                raise self.fault(path, f"{key} is missing")
        date = entry["date"]
        if not isinstance(date, datetime.date):
            raise self.fault(f"{path}.date", f"{date!r} is no date; write YEAR-MONTH-DAY")
        usd = self.number(f"{path}.usd_per_gpu_hour", entry["usd_per_gpu_hour"], 0.0, 10_000.0)
        return Price(usd, date.isoformat(), str(entry["source"]))

    def number(self, path: str, value: Any, least: float, most: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fault(path, f"{value!r} is not a number")
        if not least <= value <= most:
            raise self.fault(path, f"{value} is out of range; it must be from {least:g} to {most:g}")
        return float(value)
