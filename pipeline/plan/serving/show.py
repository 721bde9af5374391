"""An answer as text, as derivations (``--explain``) or for machines (``--json``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline import strict_json
from pipeline.plan.quantity import Quantity


@dataclass(frozen=True)
class Table:
    """Rows of numbers under headings; ``caption`` says what a row is."""

    caption: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Quantity, ...], ...]


@dataclass(frozen=True)
class Answer:
    """What a verb has found: numbers with a remark each, tables, and remarks on the whole."""

    title: str
    lines: tuple[tuple[Quantity, str], ...]
    tables: tuple[Table, ...] = ()
    remarks: tuple[str, ...] = ()


def show(answer: Answer, *, explain: str | None, machine: bool) -> None:
    """Print an answer; ``explain`` is None, or a part of the names whose derivation is wanted (empty: of all)."""
    if machine:
        print(strict_json.dumps(as_dict(answer), indent=2))
    elif explain is None:
        print("\n".join(text(answer)))
    else:
        print("\n".join(derivations(answer, explain)))


def text(answer: Answer) -> Iterator[str]:
    """The answer for a person, line by line."""
    yield answer.title
    names = max((len(quantity.name) for quantity, _ in answer.lines), default=0)
    sizes = max((len(str(quantity)) for quantity, _ in answer.lines), default=0)
    for quantity, remark in answer.lines:
        yield f"  {quantity.name:<{names}}  {quantity!s:>{sizes}}  {remark}".rstrip()
    for table in answer.tables:
        yield ""
        yield table.caption
        cells = [table.headings, *(tuple(map(str, row)) for row in table.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(table.headings))]
        for row in cells:
            yield "  " + "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))
    if answer.remarks:
        yield ""
        yield from answer.remarks


def derivations(answer: Answer, name: str) -> Iterator[str]:
    """The derivation of each number whose name contains ``name``; of a table's rows the first, unless one is named."""
    found = [quantity for quantity, _ in answer.lines]
    for table in answer.tables:
        found += [quantity for row in (table.rows if name else table.rows[:1]) for quantity in row]
    chosen = [quantity for quantity in found if name.lower() in quantity.name.lower()]
    if not chosen:
        yield f"no number here is called {name!r}; there are: {', '.join(dict.fromkeys(one.name for one in found))}"
    for quantity in dict.fromkeys(chosen):
        yield from quantity.derivation()
        yield ""
    yield from answer.remarks


def as_dict(answer: Answer) -> dict[str, Any]:
    """The answer for machines: numbers with their derivations, each of which stands there once.

    What has been derived is afterwards named with its value alone.  Cells of tables are values: their rows are what
    the numbers above are at other settings, by the same formulas.
    """
    seen: set[Quantity] = set()
    return {
        "title": answer.title,
        "numbers": [
            _derived(quantity, seen) | ({"remark": remark} if remark else {})
            for quantity, remark in answer.lines
        ],
        "tables": [
            {
                "caption": table.caption,
                "rows": [
                    {heading: _bare(cell) for heading, cell in zip(table.headings, row, strict=True)}
                    for row in table.rows
                ],
            }
            for table in answer.tables
        ],
        "remarks": list(answer.remarks),
    }


def _derived(quantity: Quantity, seen: set[Quantity]) -> dict[str, Any]:
    """A number with all that it rests on, but for what is in ``seen``."""
    if not quantity.inputs:
        return quantity.as_dict()
    if quantity in seen:
        return _bare(quantity)
    seen.add(quantity)
    alone = dataclasses.replace(quantity, inputs=()).as_dict()
    return alone | {"inputs": [_derived(given, seen) for given in quantity.inputs]}


def _bare(quantity: Quantity) -> dict[str, Any]:
    """A number without its derivation."""
    return dataclasses.replace(quantity, formula="", inputs=(), source="").as_dict()
