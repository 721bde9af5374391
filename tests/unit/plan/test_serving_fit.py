"""The roofline of serving is held to published rows that no constant was fitted on."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from pipeline.plan.serving import evidence
from pipeline.plan.serving import fit as serving_fit
from pipeline.plan.serving.engine import PEAK, Efficiency
from pipeline.plan.serving.fit import FILE, fit, latency_errors, main, report
from pipeline.plan.serving.load import HEADROOM, under
from pipeline.plan.serving.published import Row, latency_rows, mean_and_most, throughput_rows

ROWS = throughput_rows()
# The published table of TensorRT-LLM v0.17 as the reference of this project prints it, rounded to whole tokens/s.
COLUMNS = (
    ("llama-3.1-8b", "H100-80GB", 1),
    ("llama-3.1-8b", "H200", 1),
    ("llama-3.1-70b", "H100-80GB", 2),
    ("llama-3.1-70b", "H100-80GB", 4),
    ("llama-3.1-70b", "H100-80GB", 8),
    ("llama-3.1-405b", "H200", 8),
)
REFERENCE = {
    (128, 128): (28837, 29526, 6645, 11128, 14731, 3874),
    (128, 2048): (21109, 25399, 6170, 11512, 17062, 5938),
    (1000, 1000): (15245, 17538, 4391, 7431, 11451, 3400),
}


def of_the_reference() -> list[Row]:
    return [
        row
        for row in ROWS
        if (row.input, row.output) in REFERENCE and (row.model, row.gpu, row.tensor) in COLUMNS
    ]


def test_the_rows_are_those_of_the_reference() -> None:
    found = {
        (row.input, row.output, row.model, row.gpu, row.tensor): row.tokens_per_s
        for row in of_the_reference()
    }
    assert len(found) == 18
    for lengths, values in REFERENCE.items():
        for column, value in zip(COLUMNS, values, strict=True):
            assert round(found[(*lengths, *column)]) == value


def test_rows_are_fitted_on_by_the_rule_that_the_file_states() -> None:
    columns = {("llama-3.1-8b", 1), ("llama-3.1-70b", 2), ("llama-3.1-70b", 4), ("llama-3.1-70b", 8)}
    for row in ROWS:
        if row.model.startswith("mixtral") or row.precision != "fp8":
            expected = "beyond"
        elif (
            row.gpu == "H100-80GB"
            and {row.input, row.output} <= {128, 2048}
            and (row.model, row.tensor) in columns
        ):
            expected = "fit"
        else:
            expected = "held-out"
        assert row.use == expected
    counts = {use: sum(row.use == use for row in ROWS) for use in ("fit", "held-out", "beyond")}
    assert counts == {"fit": 16, "held-out": 99, "beyond": 169}


def test_fitting_again_gives_what_is_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path / "again.json")]) == 0
    capsys.readouterr()
    again, stored = json.loads((tmp_path / "again.json").read_text()), json.loads(FILE.read_text())
    assert again["constants"] == pytest.approx(stored["constants"], rel=1e-3)
    for group, errors in stored["relative errors"].items():
        assert again["relative errors"][group]["rows"] == errors["rows"]
        assert again["relative errors"][group]["mean"] == pytest.approx(errors["mean"], abs=2e-3)


def test_rows_that_are_held_out_decide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = report()
    twice = [
        row if row.use == "fit" else dataclasses.replace(row, tokens_per_s=2 * row.tokens_per_s)
        for row in ROWS
    ]
    monkeypatch.setattr(serving_fit, "throughput_rows", lambda: twice)
    after = report()
    assert after["constants"] == before["constants"]
    assert after["relative errors"]["held-out"]["mean"] > 0.3  # they were looked at only to be judged


def test_constants_are_recovered_from_rows_that_the_model_itself_made() -> None:
    true = Efficiency(0.5, 0.8, 0.4, 5e-5)
    made = [dataclasses.replace(row, tokens_per_s=row.predicted(true)) for row in ROWS if row.use == "fit"]
    found = fit(made)
    for name in ("compute", "memory", "network", "wait"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), rel=1e-3)


def test_held_out_throughput_is_predicted_within_15_percent_on_the_average() -> None:
    errors = [row.error(evidence.efficiency()) for row in ROWS if row.use == "held-out"]
    mean, most = mean_and_most(errors)
    print(f"held out: mean {mean:.1%}, at most {most:.1%}, of {len(errors)} rows")
    assert len(errors) == 99
    assert mean <= 0.15
    assert most <= 0.50  # 70B on one H200: a few GB beside the weights decide how many requests run


def test_the_held_out_rows_of_the_reference_are_predicted_within_15_percent_each() -> None:
    errors = [row.error(evidence.efficiency()) for row in of_the_reference() if row.use == "held-out"]
    mean, most = mean_and_most(errors)
    print(f"held out, of the reference: mean {mean:.1%}, at most {most:.1%}, of {len(errors)} rows")
    assert len(errors) == 10
    assert mean <= 0.15
    assert most <= 0.15


def test_mixtures_of_experts_and_16_bit_are_worse_and_said_to_be() -> None:
    mean, _ = mean_and_most([row.error(evidence.efficiency()) for row in ROWS if row.use == "beyond"])
    stored = json.loads(FILE.read_text())["relative errors"]
    assert stored["beyond"]["mean"] == pytest.approx(mean, abs=1e-3)
    assert stored["beyond"]["mean"] > stored["held-out"]["mean"]


def test_latencies_measured_elsewhere_are_of_the_right_size() -> None:
    # Another version, bf16, through a server; no constant is of these rows.
    rows = latency_rows()
    first, between, unanswerable = latency_errors(evidence.efficiency(), rows)
    for name, errors, bound in (("time to first token", first, 0.30), ("inter-token latency", between, 0.35)):
        mean, most = mean_and_most(errors)
        print(f"{name}: mean {mean:.1%}, at most {most:.1%}, of {len(errors)} rows")
        assert len(errors) + unanswerable == len(rows) == 48
        assert mean <= bound


def test_a_row_that_the_model_holds_impossible_is_counted_and_said() -> None:
    rows = latency_rows()
    rows[0] = dataclasses.replace(rows[0], rate=1e6)
    first, between, unanswerable = latency_errors(evidence.efficiency(), rows)
    assert (len(first), len(between), unanswerable) == (47, 47, 1)
    assert "mean of 47 rows, at most 92%; no answer for 1 more)" in str(evidence.Error(47, 0.3, 0.92, "", 1))


def test_rows_near_the_limit_are_in_the_stored_errors() -> None:
    found = [
        under(row.engine(evidence.efficiency()), row.rate, row.input, row.output) for row in latency_rows()
    ]
    assert any(one is not None and one.utilisation > HEADROOM for one in found)
    stored = json.loads(FILE.read_text())["relative errors"]
    for group in ("time to first token", "inter-token latency"):
        assert stored[group]["rows"] + stored[group]["unanswerable"] == len(found)


def test_a_pure_roofline_promises_too_much_and_the_more_so_the_more_gpus_share() -> None:
    # Without efficiencies, and without what GPUs that share a model tell each other.
    free = dataclasses.replace(PEAK, network=math.inf)
    over = {
        column: [
            row.predicted(free) / row.tokens_per_s
            for row in of_the_reference()
            if (row.model, row.gpu, row.tensor) == column
        ]
        for column in COLUMNS
    }
    assert all(1.2 <= ratio <= 3.7 for ratios in over.values() for ratio in ratios)
    shared = [sum(over["llama-3.1-70b", "H100-80GB", tensor]) / 3 for tensor in (2, 4, 8)]
    assert shared == sorted(shared)
    assert sum(over["llama-3.1-8b", "H100-80GB", 1]) / 3 < shared[0]
