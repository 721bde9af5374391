"""Published training throughput, row by row: ``published/training.csv``, of the models in ``published/models.json``.

**Which rows are fitted and which held out** was decided before any error was looked at, by one rule: a *configuration* is a model on a
kind of GPU in one layout, with all releases and batch sizes it was published in, so that a row and its repetition never stand
on both sides.  Configurations are numbered in the order of the tables they are from; odd ones are fitted, even ones held
out.  Mixtures of experts are numbered on their own, from 101, and rows that drop tokens are left out, since they compute less
than they count.

``accounting`` names how a row's TFLOP/s were counted (``flops.py``); empty where no accounting of this project gives them.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.plan import shapes
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.flops import accounted
from pipeline.plan.training.layout import Layout, Work

FOLDER = Path(__file__).resolve().parents[1] / "published"


@dataclass(frozen=True)
class Row:
    """One published measurement: ``tokens`` a second and GPU, ``tflops`` a second and GPU; 0 where not printed."""

    name: str
    source: str
    use: str
    configuration: int
    shape: Shape
    layout: Layout
    work: Work
    gpu: str
    accounting: str
    tokens: float
    tflops: float

    @property
    def throughput(self) -> float:
        """Tokens a second and GPU, as printed, or by the row's TFLOP/s where those alone are printed."""
        return self.tokens or self.tflops * 1e12 / accounted(self.shape, self.work.length, self.accounting)


@lru_cache(maxsize=1)
def models() -> dict[str, Shape]:
    """The models that rows are of."""
    configs = json.loads((FOLDER / "models.json").read_text(encoding="utf-8"))
    return {name: shapes.from_config(config, name) for name, config in configs.items()}


@lru_cache(maxsize=1)
def rows() -> tuple[Row, ...]:
    """All rows, in the file's order."""
    with (FOLDER / "training.csv").open(encoding="utf-8", newline="") as file:
        return tuple(_row(line) for line in csv.DictReader(file))


def _row(line: dict[str, str]) -> Row:
    number = {key: int(line[key]) for key in ("gpus", "tensor", "pipeline", "virtual", "context", "expert")}
    layout = Layout(
        **number,
        sequence_parallel=number["tensor"] > 1,
        sharding=line["sharding"],
        micro_batch=int(line["micro_batch"]),
        global_batch=int(line["global_batch"]),
        recompute=line["recompute"],
    )
    work = Work(
        line["kind"],
        length=int(line["length"]),
        precision=line["precision"],
        states=line["states"],
        peft=line["peft"],
    )
    name = f"{line['source']}: {line['model']} {line['kind'] if line['peft'] == 'none' else line['peft']}, {layout.words()}, {line['gpu']}"
    return Row(
        name,
        line["source"],
        line["use"],
        int(line["configuration"]),
        models()[line["model"]],
        layout,
        work,
        line["gpu"],
        line["accounting"],
        float(line["tokens_per_s"] or 0),
        float(line["tflops"]),
    )
