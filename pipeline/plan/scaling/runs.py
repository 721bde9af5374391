"""A user's training runs as columns, from runs.csv (the columns are in :mod:`~pipeline.plan.scaling.table`)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.plan.scaling.laws import FLOP_PER_TOKEN
from pipeline.plan.scaling.objective import Array
from pipeline.plan.scaling.table import RUNS, read_rows


@dataclass(frozen=True)
class Runs:
    """Runs ``[runs]``: parameters, tokens, loss in nats a token, compute and budget in FLOP, epochs (NaN: unknown)."""

    parameters: Array
    tokens: Array
    loss: Array
    flops: Array
    budget: Array
    epochs: Array
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: list[int]) -> Runs:
        """Some of the runs, by place."""
        return Runs(
            self.parameters[rows],
            self.tokens[rows],
            self.loss[rows],
            self.flops[rows],
            self.budget[rows],
            self.epochs[rows],
            tuple(self.names[row] for row in rows),
        )

    @property
    def per_token(self) -> float:
        """FLOP per parameter and token: the median of the runs."""
        return float(np.median(self.flops / (self.parameters * self.tokens)))


def read_runs(path: Path) -> tuple[Runs, Runs]:
    """The runs to fit, and those that are held out of every fit.  Raises :class:`UserError` by file and line."""
    rows = read_rows(path, RUNS)
    numbers = [row.numbers for row in rows]
    flops = [each.get("flops", FLOP_PER_TOKEN * each["parameters"] * each["tokens"]) for each in numbers]
    whole = Runs(
        np.array([each["parameters"] for each in numbers]),
        np.array([each["tokens"] for each in numbers]),
        np.array([each["loss"] for each in numbers]),
        np.array(flops),
        np.array([each.get("budget", known) for each, known in zip(numbers, flops, strict=True)]),
        np.array([each.get("epochs", np.nan) for each in numbers]),
        tuple(row.texts.get("name", f"line {row.line}") for row in rows),
    )
    for row, ratio in zip(rows, whole.flops / (whole.parameters * whole.tokens), strict=True):
        if not 1 <= ratio <= 60:
            raise UserError(
                f"{path}:{row.line}: flops is {ratio:.3g} times parameters x tokens, where training takes about 6: "
                f"one of the three is in another unit"
            )
    held = [place for place, each in enumerate(numbers) if each.get("held_out")]
    kept = [place for place in range(len(rows)) if place not in set(held)]
    if not kept:
        raise UserError(f"{path}: every run is held out: there is nothing to fit")
    return whole.take(kept), whole.take(held)
