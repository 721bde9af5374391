"""Pass counts of repeated sampling, read from a file: one line a problem.

    problem,samples,correct
    django-11099,250,31

``n`` and ``c`` are understood as well.  Nonsense is refused with file and line.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

COLUMNS = {"problem": ("problem",), "samples": ("samples", "n"), "correct": ("correct", "c")}


@dataclass(frozen=True)
class Problem:
    """How many of a problem's samples were correct."""

    name: str
    samples: int
    correct: int


def read(path: str) -> list[Problem]:
    """The problems in a CSV file; raises :class:`UserError` for what makes no sense, with its line."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError(f"{path}: cannot be read: {reason}") from None
    reader = csv.reader(text.splitlines())
    header = [name.strip().lower() for name in next(reader, [])]
    places = {}
    for column, names in COLUMNS.items():
        place = next((header.index(name) for name in names if name in header), None)
        if place is None:
            raise UserError(
                f"{path}:1: there is no column {' or '.join(names)}; the first line must name problem, samples, correct"
            )
        places[column] = place
    found: list[Problem] = []
    seen: dict[str, int] = {}
    for row in reader:
        if not any(cell.strip() for cell in row):
            continue
        where = f"{path}:{reader.line_num}"
        if len(row) != len(header):
            raise UserError(f"{where}: {len(row)} values, and the first line names {len(header)} columns")
        name = row[places["problem"]].strip()
        if name in seen:
            raise UserError(
                f"{where}: the problem {name!r} stands in line {seen[name]} already; give each one line"
            )
        seen[name] = reader.line_num
        found.append(_problem(name, row[places["samples"]], row[places["correct"]], where))
    if not found:
        raise UserError(f"{path}: there is no problem in it")
    return found


def _problem(name: str, samples: str, correct: str, where: str) -> Problem:
    counts = []
    for column, text in (("samples", samples), ("correct", correct)):
        try:
            counts.append(int(text))
        except ValueError:
            raise UserError(f"{where}: {column} is {text.strip()!r}; must be a whole number") from None
    if counts[0] < 1:
        raise UserError(f"{where}: {counts[0]} samples; must be at least 1")
    if not 0 <= counts[1] <= counts[0]:
        raise UserError(f"{where}: {counts[1]} correct of {counts[0]} samples; must be from 0 to the samples")
    return Problem(name, *counts)
