"""The published serving measurements that the roofline is fitted on and held to.

``pipeline/plan/published/serving.csv`` says where they are from and by which rule each row is to be fitted on, held
out, or beyond the model's claim; ``serving-latency.csv`` is never fitted on.  The page's shapes are in ``serving-models.json``.
"""

from __future__ import annotations

import csv
import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.plan.serving.engine import PRECISIONS, Efficiency, Engine
from pipeline.plan.serving.interfaces import Shape

FOLDER = Path(__file__).parents[1] / "published"


@dataclass(frozen=True)
class Measured:
    """What was measured: a model on ``tensor`` GPUs, requests of one length."""

    model: str
    gpu: str
    precision: str
    tensor: int
    input: int
    output: int

    def engine(self, efficiency: Efficiency) -> Engine:
        """The replica that the row was measured on; its cache has the precision of its layers."""
        return _engine(self.model, self.gpu, self.precision, self.tensor, efficiency)


@dataclass(frozen=True)
class Row(Measured):
    """Output tokens a second of all GPUs together, of ``requests`` requests sent at once."""

    requests: int
    tokens_per_s: float
    use: str

    def predicted(self, efficiency: Efficiency) -> float:
        """What the roofline says of the row.

        The benchmark's requests are all of one length and sent at once, so they come and go in waves; the last wave
        is what is left of their number.
        """
        engine = self.engine(efficiency)
        batch = min(engine.largest_batch(self.input + self.output), self.requests)
        if not batch:
            return 0.0
        waves, left = divmod(self.requests, batch)
        seconds = waves * engine.at_full_load(batch, self.input, self.output).total
        if left:
            seconds += engine.at_full_load(left, self.input, self.output).total
        return self.requests / seconds

    def error(self, efficiency: Efficiency) -> float:
        """Relative error of the prediction."""
        return self.predicted(efficiency) / self.tokens_per_s - 1


@dataclass(frozen=True)
class LatencyRow(Measured):
    """Mean seconds to the first token and between tokens, at ``rate`` requests a second of one replica."""

    rate: float
    first_token: float
    between: float


def throughput_rows() -> list[Row]:
    """All rows of ``serving.csv``."""
    return [
        Row(
            found["model"],
            found["gpu"],
            found["precision"],
            int(found["tensor_parallel"]),
            int(found["input"]),
            int(found["output"]),
            int(found["requests"]),
            float(found["tokens_per_s"]),
            found["use"],
        )
        for found in _read("serving.csv")
    ]


def latency_rows() -> list[LatencyRow]:
    """All rows of ``serving-latency.csv``."""
    return [
        LatencyRow(
            found["model"],
            found["gpu"],
            found["precision"],
            int(found["tensor_parallel"]),
            int(found["input"]),
            int(found["output"]),
            float(found["rate"]),
            float(found["ttft_ms"]) / 1e3,
            float(found["itl_ms"]) / 1e3,
        )
        for found in _read("serving-latency.csv")
    ]


def shape(model: str) -> Shape:
    """The shape of a model that the page names."""
    from pipeline.plan import shapes

    configs = json.loads((FOLDER / "serving-models.json").read_text(encoding="utf-8"))
    found: Shape = shapes.from_config(configs[model], model)
    return found


def mean_and_most(errors: list[float]) -> tuple[float, float]:
    """Mean and maximum of the errors' sizes."""
    sizes = [abs(error) for error in errors]
    return math.fsum(sizes) / len(sizes), max(sizes)


@functools.cache
def _engine(model: str, gpu: str, precision: str, tensor: int, efficiency: Efficiency) -> Engine:
    from pipeline.plan import hardware

    return Engine(shape(model), hardware.gpu(gpu), PRECISIONS[precision], precision, tensor, efficiency)


def _read(name: str) -> list[dict[str, str]]:
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))
