"""How far a prediction was from what was measured, for rows that no constant was fitted on.

``efficiency.json`` holds the constants and these errors, as ``fit.py`` wrote them; every prediction is printed with them.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.plan.serving.engine import Efficiency, Engine

FILE = Path(__file__).with_name("efficiency.json")
SOURCE = "pipeline/plan/serving/efficiency.json"
MEASURED = ("H100-80GB", "H200")
NEAR = ("A100-80GB",)


@dataclass(frozen=True)
class Error:
    """Mean and maximum relative error over ``rows`` published measurements; ``caution`` where none is of this kind.

    ``unanswerable`` rows more were measured at rates that the model holds impossible: they have no error.
    """

    rows: int
    mean: float
    most: float
    caution: str = ""
    unanswerable: int = 0

    def __str__(self) -> str:
        caution = f"; {self.caution}" if self.caution else ""
        missing = f"; no answer for {self.unanswerable} more" if self.unanswerable else ""
        return f"± {self.mean:.0%} (held out: mean of {self.rows} rows, at most {self.most:.0%}{missing}{caution})"


def efficiency() -> Efficiency:
    """The fitted constants."""
    return Efficiency(**_stored()["constants"])


def throughput(engine: Engine) -> Error:
    """Error of the throughput of engines like this one: dense FP8 on Hopper, or what lies beyond it."""
    dense = engine.shape.active_layer_parameters == engine.shape.layer_parameters
    like = dense and engine.precision.name == "fp8" and engine.gpu.name in MEASURED
    return _error("held-out" if like else "beyond", "" if like else _caution(engine))


def first_token(engine: Engine) -> Error:
    """Error of the mean time to the first token."""
    return _error("time to first token", _caution(engine))


def between_tokens(engine: Engine) -> Error:
    """Error of the mean inter-token latency."""
    return _error("inter-token latency", _caution(engine))


def _caution(engine: Engine) -> str:
    """What of the engine no published row is like."""
    unlike = []
    if engine.gpu.name not in (*MEASURED, *NEAR):
        unlike.append(engine.gpu.name)
    if engine.precision.name not in ("fp8", "bf16"):
        unlike.append(engine.precision.name)
    if engine.shape.family not in ("llama", "mistral", "mixtral"):
        unlike.append(engine.shape.family)
    return f"none of them with {' or '.join(unlike)}" if unlike else ""


def _error(group: str, caution: str) -> Error:
    found = _stored()["relative errors"][group]
    return Error(found["rows"], found["mean"], found["max"], caution, found.get("unanswerable", 0))


@functools.cache
def _stored() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return found
