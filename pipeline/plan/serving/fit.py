"""Fit the efficiency of serving on the fit rows alone, measure its error on all others, and write both down.

    python -m pipeline.plan.serving.fit            writes pipeline/plan/serving/efficiency.json
    python -m pipeline.plan.serving.fit --rows     and prints every row beside its prediction

Least squares of log(predicted / measured) over the rows whose ``use`` is ``fit``, within (0, 1] for what is a share of
a peak.  The form was chosen among others of up to four constants (a fixed cost of a step or of a request, shares that
fall with a power of the tensor-parallel size, computing and reading one after the other) by leaving one *fit* row out
at a time; no held-out row was looked at before it was settled.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.plan.serving.engine import Efficiency
from pipeline.plan.serving.load import under
from pipeline.plan.serving.published import LatencyRow, Row, latency_rows, mean_and_most, throughput_rows

FILE = Path(__file__).with_name("efficiency.json")
START = (0.6, 0.7, 0.6, 1e-4)


def fit(rows: list[Row]) -> Efficiency:
    """The constants that predict ``rows`` best; refuses fewer rows than constants."""
    from scipy.optimize import least_squares

    assert len(rows) > len(START), "fewer rows than constants"

    def differences(logs: Any) -> list[float]:
        tried = Efficiency(*(math.exp(log) for log in logs))
        return [math.log(row.predicted(tried) / row.tokens_per_s) for row in rows]

    found = least_squares(
        differences,
        [math.log(value) for value in START],
        bounds=([-20.0] * 4, [0.0, 0.0, 0.0, math.log(0.1)]),
        xtol=1e-12,
        ftol=1e-12,
    )
    return Efficiency(*(float(f"{math.exp(log):.4g}") for log in found.x))


def latency_errors(efficiency: Efficiency, rows: list[LatencyRow]) -> tuple[list[float], list[float], int]:
    """Relative errors of time to first token and inter-token latency, and how many rows could not be answered.

    Of every row, however near to the limit the model holds it: rows that its own prediction picked would tell of a
    better model than there is.  A row that was measured at a rate which the model holds impossible has no prediction
    to compare, and is counted in the place of an error.
    """
    first, between, unanswerable = [], [], 0
    for row in rows:
        found = under(row.engine(efficiency), row.rate, row.input, row.output)
        if found is None:
            unanswerable += 1
            continue
        first.append(found.first_token / row.first_token - 1)
        between.append(found.between / row.between - 1)
    return first, between, unanswerable


def report() -> dict[str, Any]:
    """Constants, and their errors by group of rows."""
    rows = throughput_rows()
    found = fit([row for row in rows if row.use == "fit"])
    groups: dict[str, list[float]] = {}
    for row in rows:
        groups.setdefault(row.use, []).append(row.error(found))
    first, between, unanswerable = latency_errors(found, latency_rows())
    groups |= {"time to first token": first, "inter-token latency": between}
    errors: dict[str, dict[str, float]] = {}
    for name, values in groups.items():
        mean, most = mean_and_most(values)
        errors[name] = {"rows": len(values), "mean": round(mean, 4), "max": round(most, 4)}
        if values is first or values is between:
            errors[name]["unanswerable"] = unanswerable
    return {
        "written by": "python -m pipeline.plan.serving.fit",
        "constants": {
            "compute": found.compute,
            "memory": found.memory,
            "network": found.network,
            "wait": found.wait,
        },
        "relative errors": errors,
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the data file; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m pipeline.plan.serving.fit", description=__doc__)
    parser.add_argument("--output", type=Path, default=FILE, help="where to write")
    parser.add_argument("--rows", action="store_true", help="print every row beside its prediction")
    options = parser.parse_args(arguments)
    found = report()
    options.output.write_text(strict_json.dumps(found, indent=2) + "\n", encoding="utf-8")
    if options.rows:
        constants = Efficiency(**found["constants"])
        for row in throughput_rows():
            print(
                f"{row.use:9}{row.model:15}{row.gpu:11}{row.precision:5}TP{row.tensor} {row.input:6}{row.output:6}"
                f"{row.tokens_per_s:10.0f}{row.predicted(constants):10.0f}{row.error(constants):+8.1%}"
            )
    print(strict_json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
