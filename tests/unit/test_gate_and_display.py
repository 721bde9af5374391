"""The gate's verdicts, and what the display says."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pipeline import schema
from pipeline.runner.display import Display, Rate, duration
from pipeline.runner.gate import judge


def figures(**changes: Any) -> dict[str, Any]:
    base = {
        "model": "align",
        "parent": "train",
        "answer_loss": 4.1,
        "parent_answer_loss": 4.0,
        "content_accuracy_change": 0.01,
        "content_accuracy_change_ci": [-0.01, 0.03],
        "style_accuracy": 0.95,
        "parent_style_accuracy": 0.7,
    }
    return {"gate": {**base, **changes}}


def test_a_better_model_passes() -> None:
    verdict = judge(figures(), schema.Gate())
    assert verdict.passed
    assert len(verdict.checks) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_loss": 4.4}, "answer loss"),
        ({"content_accuracy_change_ci": [-0.2, -0.1]}, "content accuracy"),
        ({"style_accuracy": 0.5}, "style preference accuracy"),
        ({"answer_loss": float("nan")}, "answer loss"),
    ],
)
def test_a_worse_model_is_stopped_and_named(changes: dict[str, Any], words: str) -> None:
    verdict = judge(figures(**changes), schema.Gate())
    assert not verdict.open
    assert words in verdict.failures[0]


def test_an_override_opens_and_is_recorded_but_only_when_it_was_needed() -> None:
    tolerance = schema.Gate(override_reason="known and accepted")
    closed = judge(figures(answer_loss=9.0), tolerance)
    assert closed.open
    assert not closed.passed
    assert closed.record()["override_reason"] == "known and accepted"
    assert judge(figures(), tolerance).record()["override_reason"] is None


def test_missing_figures_are_named_and_do_not_close_the_gate() -> None:
    verdict = judge(figures(content_accuracy_change_ci=None), schema.Gate())
    assert verdict.passed
    assert "content accuracy: not checked (no figure)" in verdict.checks
    assert judge({"gate": {"model": "train", "parent": None}}, schema.Gate()).passed


def test_rate_and_time_left() -> None:
    rate = Rate()
    rate.add(10, 100, 0.0)
    assert rate.per_second() is None
    rate.add(30, 100, 2.0)
    assert rate.per_second() == 10
    assert rate.seconds_left() == 7
    rate.add(5, 100, 3.0)  # a new phase starts over
    assert rate.per_second() is None


def test_plain_lines_say_what_happens() -> None:
    text = io.StringIO()
    display = Display(Console(file=text, width=120))
    display.start("train", "nothing is there yet")
    display.event({"kind": "phase", "name": "load"})
    display.event({"kind": "progress", "done": 5, "total": 10, "unit": "steps", "note": "loss [2.1]"})
    assert display.words() == "load, 5/10 steps, loss [2.1]"
    display.event({"kind": "warning", "text": "careful [bold]"})
    display.end("answer loss 2.1", 75)
    lines = text.getvalue().splitlines()
    assert lines[0] == "train     starts: nothing is there yet"
    assert lines[1] == "train     warning: careful [bold]"
    assert lines[2] == "train     done in 1 min 15 s: answer loss 2.1"
    assert [duration(s) for s in (3.21, 59, 3600, 7260)] == ["3.2 s", "59 s", "1 h 00 min", "2 h 01 min"]
