"""Fits the speed model's constants on published throughput: ``python -m pipeline.plan.training.fit``.

Least squares on the logarithm of predicted over published tokens/s, by ``scipy.optimize.least_squares``, of the rows that
``published/training.csv`` marks ``fit``, and on what is expected of each constant (:data:`START`), as a Gaussian prior; every
configuration weighs the same, however often it was published.  Dense models first, with all constants but those of
experts; then these alone, on the mixtures of experts.  The constants and the errors on held-out rows are written to
``published/training.json``.

Two things were changed after the first fit, whose held-out errors had been printed (dense: mean 3.4%, largest 13.7%), both for
what the *fitted* rows said: expectations were added, since without them three communication and adapter constants stood at
zero; and experts got a term of what is sent to them, each framework its own, instead of a factor on their products, which left
85% on fitted rows.  The dense held-out error rose to 3.7% and 15.0% by it.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from pipeline import strict_json
from pipeline.plan import hardware
from pipeline.plan.training.efficiency import FITTED, NAMES, Constants
from pipeline.plan.training.layout import experts
from pipeline.plan.training.published import Row, rows
from pipeline.plan.training.speed import step_parts

# What is expected of each constant before a row is seen, and how surely (a standard deviation): rows of few layouts cannot tell
# every communication's share from every other's, and without an expectation the fit would call some of them free.  Half
# of a communication hidden, give or take a quarter; products at 0.6 of the bf16 peak and 0.5 of fp8's; what is kept is written once
# and read twice, give or take as much again; adapters cost a tenth more.
START = Constants(0.6, 0.5, 3.0, 0.5, 0.5, 0.5, 0.1, 3.0, 3.0)
UNSURE = Constants(0.2, 0.2, 3.0, 0.25, 0.25, 0.25, 0.1, 10.0, 10.0)
NOISE = 0.05  # of a row, as a share: releases differ by so much with nothing else changed
LOWEST = Constants(0.1, 0.1, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
HIGHEST = Constants(1.0, 1.0, 10.0, 1.0, 1.0, 1.0, 1.0, 50.0, 50.0)


def predicted(row: Row, constants: Constants) -> float:
    """Tokens a second and GPU that the model gives for a row."""
    parts = step_parts(row.shape, row.layout, row.work, hardware.gpu(row.gpu), constants)
    positions = row.layout.global_batch * row.work.sequences * row.work.length
    return positions / (sum(parts.values()) * row.layout.gpus)


def error(row: Row, constants: Constants) -> float:
    """Relative error of the prediction, with its sign."""
    return predicted(row, constants) / row.throughput - 1


def fit() -> Constants:
    """The constants of least squares."""
    fitted = [row for row in rows() if row.use == "fit"]
    routing = ["experts", "experts_automodel"]
    dense = [name for name in NAMES if name not in routing]
    constants = _fit(START, dense, [row for row in fitted if not experts(row.shape)])
    return _fit(constants, routing, [row for row in fitted if experts(row.shape)])


def _fit(start: Constants, names: list[str], on: list[Row]) -> Constants:
    import numpy as np
    from scipy.optimize import least_squares

    repeats = Counter(row.configuration for row in on)

    def constants(values: Any) -> Constants:
        return Constants(**{**asdict(start), **dict(zip(names, map(float, values), strict=True))})

    def residuals(values: Any) -> Any:
        found = constants(values)
        seen = [
            math.log(predicted(row, found) / row.throughput) / NOISE / math.sqrt(repeats[row.configuration])
            for row in on
        ]
        expected = [(getattr(found, name) - getattr(START, name)) / getattr(UNSURE, name) for name in names]
        return np.array(seen + expected)

    bounds = ([getattr(LOWEST, name) for name in names], [getattr(HIGHEST, name) for name in names])
    begin = [getattr(start, name) for name in names]
    best = least_squares(residuals, begin, bounds=bounds, x_scale=begin, xtol=1e-12, ftol=1e-12, gtol=1e-12)
    return constants(best.x)


def report(constants: Constants) -> dict[str, Any]:
    """What is written: constants, errors by use and kind, each row's error, and what the rows are of."""
    every = rows()
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for use in ("held-out", "fit"):
        for kind in ("dense", "experts"):
            found = [
                abs(error(row, constants))
                for row in every
                if row.use == use and bool(experts(row.shape)) == (kind == "experts")
            ]
            errors.setdefault(use, {})[kind] = {
                "mean": round(sum(found) / len(found), 4),
                "max": round(max(found), 4),
                "rows": len(found),
            }
    return {
        "written by": "python -m pipeline.plan.training.fit",
        "constants": {name: round(value, 5) for name, value in asdict(constants).items()},
        "held_out": errors["held-out"],
        "in_sample": errors["fit"],
        "known": {
            "gpus": sorted({row.gpu for row in every}),
            "smallest": min(row.shape.parameters for row in every),
            "fitted_gpus": sorted({row.gpu for row in every if row.use == "fit"}),
        },
        "rows": [
            {
                "use": row.use,
                "row": row.name,
                "published": round(row.throughput, 1),
                "error": round(error(row, constants), 4),
            }
            for row in every
        ],
    }


def main() -> None:
    """Fit, write, and say what the held-out rows say."""
    found = report(fit())
    FITTED.write_text(strict_json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(strict_json.dumps(found["constants"]))
    for row in found["rows"]:
        print(f"{row['use']:9s}{row['error']:+8.1%}  {row['row']}")
    for use in ("in_sample", "held_out"):
        for kind, said in found[use].items():
            print(f"{use} {kind}: mean {said['mean']:.1%}, largest {said['max']:.1%} of {said['rows']} rows")


if __name__ == "__main__":
    main()
