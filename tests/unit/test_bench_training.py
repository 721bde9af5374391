"""The arithmetic of the training benchmarks."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from benchmarks import training
from benchmarks.trainers import work
from benchmarks.trainers.work import Shape, Work
from benchmarks.typed import typed

LLAMA_8B = Shape(128_256, 4096, 14_336, 32, 32, 8)
SMALL = Shape(vocab_size=10, hidden_size=8, intermediate_size=16, layers=3, heads=4, kv_heads=2)


def test_a_shape_counts_the_weights_of_its_matrices() -> None:
    # Llama 3 8B has 8.030B parameters: these, the input embedding, and 65 norms of 4,096.
    embedding, norms = 128_256 * 4096, 65 * 4096
    assert LLAMA_8B.layer_weights + LLAMA_8B.output_weights + embedding + norms == 8_030_261_248
    # q and o 8 x 8, k and v 8 x 4, three of the feed-forward 8 x 16; three layers.
    assert SMALL.layer_weights == 3 * (2 * 64 + 2 * 32 + 3 * 128)
    assert SMALL.attention_width == 8
    assert Shape(10, 8, 16, 3, 4, 2, head_dim=4).layer_weights == 3 * (2 * 128 + 2 * 64 + 3 * 128)


def test_work_is_six_a_weight_and_token_and_causal_attention() -> None:
    done = Work.of([3, 5], labels=2)
    assert done == Work(tokens=8, squares=34, labels=2)
    assert done + Work(1, 1, 1) == Work(9, 35, 3)
    attention = 6 * 3 * 8 * 34
    assert done.flops(SMALL) == 6 * SMALL.layer_weights * 8 + 6 * 80 * 2 + attention
    assert done.flops(SMALL, frozen=True) == 4 * SMALL.layer_weights * 8 + 4 * 80 * 2 + attention


def test_6n_is_what_automodels_formula_gives() -> None:
    """``llama3_flops`` of AutoModel 0.7: by hand for a row of 4,096 tokens."""
    row, width, layers = 4096, 4096, 32
    theirs = row * layers * width**2 * (12 + 12 * 8 / 32 + 18 * 14_336 / width + 12 * row / width * 0.5)
    theirs += row * layers * width**2 * 6 * 128_256 / (layers * width)
    assert Work(row, row * row, row).flops(LLAMA_8B) == pytest.approx(theirs)


def side(name: str, module: str, rates: list[float]) -> training.Contender:
    made = training.Contender(name, module)
    made.runs = [{"seconds": 2.0, "tokens": 2 * rate, "squares": 0, "labels": 0} for rate in rates]
    return made


def test_ratios_are_medians_over_rounds_and_targets_are_judged_by_them() -> None:
    ours = side("ours", "ours", [30.0, 60.0, 90.0])
    trl = side("TRL's defaults", "trl_side", [20.0, 20.0, 100.0])
    bare = side("bare loop", "bare", [30.0, 66.0, 99.0])
    assert training.ratio(ours, trl) == 1.5
    assert training.verdicts("sft", [ours, trl]) == []
    missed = training.verdicts("sft", [ours, trl, bare])
    assert missed == ["sft: 0.91 times as quick as bare loop, not 0.95"]
    slow = side("TRL's defaults", "trl_side", [25.0, 50.0, 100.0])
    assert training.verdicts("dpo", [ours, slow]) == ["dpo: 1.20 times as quick as TRL's defaults, not 1.5"]


def test_the_table_shows_rates_ratios_and_the_share_of_the_peak() -> None:
    peak = training.Contender("peak", "peak")
    peak.runs = [{training.BF16: 1000.0 * SMALL.layer_weights, training.FP32: 1.0}] * 3
    rows = training.table(
        [side("ours", "ours", [30.0, 60.0, 90.0]), side("bare loop", "bare", [20.0, 30.0, 45.0])], peak, SMALL
    )
    assert rows[2].startswith("| ours | 60 | 30 | 90 |  |")
    assert rows[2].endswith("| 36.0% |")  # 6 x 60 / 1000
    assert "| bare loop | 30 | 20 | 45 | 2.00x |" in rows[3]


def test_processor_time_replaces_the_time_that_passed_on_request() -> None:
    contender = training.Contender("x", "ours", clock="processor")
    contender.process = type(
        "P", (), {"stdout": io.StringIO(json.dumps({"seconds": 9, "processor_s": 2}) + "\n")}
    )
    assert contender._answer()["seconds"] == 2
    contender.clock = "wall"
    contender.process.stdout = io.StringIO(json.dumps({"seconds": 9, "processor_s": 2}) + "\n")
    assert contender._answer()["seconds"] == 9


def test_the_command_is_told_without_places() -> None:
    told = typed("training", ["--kind", "sft", "--runs", "/somewhere/runs", "--only", "a|b", "--write"])
    assert told == 'python -m benchmarks.training --kind sft --only "a|b" --write'


def test_the_sections_that_are_written_are_in_the_readme() -> None:
    readme = Path(training.__file__).with_name("README.md").read_text(encoding="utf-8")
    for name in ("training", "training-gpu"):
        assert readme.count(f"<!-- {name} -->") == readme.count(f"<!-- /{name} -->") == 1
    assert work.__doc__
