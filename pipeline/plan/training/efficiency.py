"""The fitted constants of the speed model and the errors that come with them: ``published/training.json``.

The file is written by ``python -m pipeline.plan.training.fit`` and never by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from pipeline.plan.quantity import Quantity
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training.layout import experts

FITTED = Path(__file__).resolve().parents[1] / "published" / "training.json"


@dataclass(frozen=True)
class Constants:
    """What is fitted.

    ``bf16`` and ``fp8``: share of the peak that matrix products reach.  ``traffic``: times that what the forward pass
    keeps crosses the memory bus.  ``tensor``, ``context``, ``sharding``: share of each communication that computing does
    not hide.  ``adapters``: time added to matrix products by the adapters beside them.  ``experts`` (Megatron) and
    ``experts_automodel``: times that sending tokens to experts and back takes what the link alone would; routing, permutation
    and the experts' small products are in it.
    """

    bf16: float
    fp8: float
    traffic: float
    tensor: float
    context: float
    sharding: float
    adapters: float
    experts: float
    experts_automodel: float


NAMES = tuple(field.name for field in fields(Constants))


@dataclass(frozen=True)
class Efficiency:
    """Constants, errors on held-out rows (of dense models, and of mixtures of experts), and what the rows were of."""

    constants: Constants
    held_out: dict[str, dict[str, float]]
    known: dict[str, Any]

    def errors(self, shape: Shape) -> tuple[Quantity, Quantity]:
        """Mean and largest relative error of throughput on held-out rows of the shape's kind."""
        kind = "experts" if experts(shape) else "dense"
        found = self.held_out[kind]
        source = f"{found['rows']:.0f} held-out rows of published/training.csv, {kind}"
        formula = "|predicted / published - 1|"
        return (
            Quantity("mean held-out error", found["mean"], "", f"mean of {formula}", (), source),
            Quantity("largest held-out error", found["max"], "", f"largest {formula}", (), source),
        )


@lru_cache(maxsize=4)
def load(path: Path = FITTED) -> Efficiency:
    """The fitted constants."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return Efficiency(Constants(**found["constants"]), found["held_out"], found["known"])
