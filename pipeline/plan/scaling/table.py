"""CSV files of runs and of points, read with errors that name the file, the line and the column.

runs.csv has one row a training run::

    parameters   parameters of the model                       (needed)
    tokens       tokens that it was trained on, repeats counted (needed)
    loss         loss at the end, nats a token                  (needed)
    flops        training compute; 6 x parameters x tokens where the column is missing
    budget       the budget that the run belongs to; its own compute where the column is missing
    epochs       passes over the training data
    held_out     1 for runs that no fit may see: they are predicted, and the prediction is compared
    name         whatever tells the run to a reader
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.layers import suggest
from pipeline.plan.scaling.budget import MOST_FLOP, MOST_PARAMETERS, MOST_TOKENS

LEAST_LOSS, MOST_LOSS = 1e-6, 1e3  # nats a token; a guess among 128,000 is 11.8
TEXT, POSITIVE, SHARE, FLAG = "text", "a positive number", "a number from 0 to 1", "0 or 1"


@dataclass(frozen=True)
class Column:
    """What a column holds (one of the kinds above), and whether it, and each of its cells, must be there.

    ``least`` and ``most`` bound a positive number: what lies beyond is a slip of the unit or of the exponent.
    """

    kind: str
    needed: bool = False
    filled: bool = False
    least: float = 0.0
    most: float = math.inf


@dataclass(frozen=True)
class Row:
    """A line of a file: numbers and texts by column; a cell that is empty is missing."""

    line: int
    numbers: Mapping[str, float]
    texts: Mapping[str, str]


RUNS = {
    "parameters": Column(POSITIVE, needed=True, filled=True, least=1, most=MOST_PARAMETERS),
    "tokens": Column(POSITIVE, needed=True, filled=True, least=1, most=MOST_TOKENS),
    "loss": Column(POSITIVE, needed=True, filled=True, least=LEAST_LOSS, most=MOST_LOSS),
    "flops": Column(POSITIVE, least=1, most=MOST_FLOP),
    "budget": Column(POSITIVE, least=1, most=MOST_FLOP),
    "epochs": Column(POSITIVE, most=MOST_TOKENS),
    "held_out": Column(FLAG),
    "name": Column(TEXT),
}


def read_rows(path: Path, columns: Mapping[str, Column]) -> list[Row]:
    """The rows of a CSV file.  Raises :class:`UserError` for what is missing, unknown or no such number."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            _check_header(path, header, columns)
            rows = [
                _row(f"{path}:{reader.line_num}", reader.line_num, header, cells, columns)
                for cells in reader
                if any(cell.strip() for cell in cells)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{path}: cannot be read: {reason}") from None
    if not rows:
        raise UserError(f"{path}: holds no rows below its header")
    return rows


def _check_header(path: Path, header: list[str], columns: Mapping[str, Column]) -> None:
    for name in header:
        if name not in columns:
            raise UserError(
                f"{path}:1: unknown column {name!r}{suggest(name, list(columns))}; the columns are {', '.join(columns)}"
            )
        if header.count(name) > 1:
            raise UserError(f"{path}:1: the column {name!r} is there twice")
    missing = [name for name, column in columns.items() if column.needed and name not in header]
    if missing:
        raise UserError(f"{path}:1: the column {missing[0]!r} is missing")


def _row(where: str, line: int, header: list[str], cells: list[str], columns: Mapping[str, Column]) -> Row:
    if len(cells) != len(header):
        raise UserError(f"{where}: has {len(cells)} cells, and the header {len(header)}")
    numbers, texts = {}, {}
    for name, cell in zip(header, (cell.strip() for cell in cells), strict=True):
        column = columns[name]
        if not cell:
            if column.filled:
                raise UserError(f"{where}: {name} is empty; expected {column.kind}")
        elif column.kind == TEXT:
            texts[name] = cell
        else:
            numbers[name] = _number(where, name, cell, column)
    return Row(line, numbers, texts)


def _number(where: str, name: str, cell: str, column: Column) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    good = {
        POSITIVE: math.isfinite(value) and value > 0,
        SHARE: 0 <= value <= 1,
        FLAG: value in (0, 1),
    }[column.kind]
    if not good:
        raise UserError(f"{where}: {name} is {cell!r}; expected {column.kind}")
    if not column.least <= value <= column.most:
        raise UserError(
            f"{where}: {name} is {cell!r}; expected a number from {column.least:g} to {column.most:g}"
        )
    return value
