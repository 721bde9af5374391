"""The gate's verdicts, and what the display says."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from pipeline import schema
from pipeline.runner.display import Display, Rate, duration
from pipeline.runner.gate import judge


def kind(change: float | None, low: float, high: float, pairs: int = 100) -> dict[str, Any]:
    return {"pairs": pairs, "change": change, "change_ci": [low, high]}


def figures(kinds: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    usual = {"style": kind(0.25, 0.2, 0.3), "content": kind(0.01, -0.01, 0.03)}
    base = {
        "model": "align",
        "parent": "train",
        "answers": 200,
        "answer_loss_change": 0.025,
        "answer_loss_change_ci": [0.02, 0.03],
        "kinds": {**usual, **(kinds or {})},
        "aligned_on": ["content", "style"],
    }
    return {"gate": {**base, **changes}}


def test_a_better_model_passes_and_every_check_says_on_how_much_it_rests() -> None:
    verdict = judge(figures({"given": kind(0.1, 0.02, 0.2, 31)}, aligned_on=["given"]), schema.Gate())
    assert verdict.passed
    assert verdict.checks == [
        "answer loss of align against train: +2.5% (95% interval +2.0% to +3.0%, 200 answers; at most +7%)",
        "style preference accuracy change: +25.0 points (95% interval +20.0 points to +30.0 points, 100 pairs; "
        "at least +0.0 points)",
        "content preference accuracy change: +1.0 points (95% interval -1.0 points to +3.0 points, 100 pairs; "
        "the interval must reach +0.0 points)",
        "given preference accuracy change: +10.0 points (95% interval +2.0 points to +20.0 points, 31 pairs; "
        "the interval must reach +0.0 points)",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"answer_loss_change": 0.1}, "answer loss"),
        ({"kinds": {"content": kind(-0.15, -0.2, -0.1)}}, "content preference accuracy"),
        ({"kinds": {"style": kind(-0.2, -0.3, -0.1)}}, "style preference accuracy"),
        ({"kinds": {"given": kind(-0.15, -0.2, -0.1)}}, "given preference accuracy change: -15.0 points"),
        # What is not a number passes nothing.
        ({"answer_loss_change": float("nan")}, "answer loss: not a number, over 200 answers"),
        ({"answer_loss_change": None}, "answer loss: not a number"),
        (
            {"kinds": {"content": kind(0.0, float("nan"), float("nan"))}},
            "content preference accuracy: not a number",
        ),
        ({"kinds": {"style": kind(float("nan"), 0.0, 0.0)}}, "style preference accuracy: not a number"),
        ({"kinds": {"style": kind(None, 0.0, 0.0)}}, "style preference accuracy: not a number"),
        (
            {"kinds": {"given": {"pairs": 40, "change": None, "change_ci": None}}},
            "given preference accuracy: not a",
        ),
        # Nor does a handful.
        (
            {"kinds": {"given": kind(0.5, -0.5, 1.0, 4)}},
            "4 pairs are too few to judge by (gate.min_pairs = 20)",
        ),
        ({"kinds": {"style": kind(1.0, 1.0, 1.0, 19)}}, "19 pairs are too few"),
        ({"answers": 3}, "answer loss: 3 answers are too few"),
        # Nor what was not looked at.
        (
            {"aligned_on": ["content", "given", "style"]},
            "no pair of a kind that align was aligned on is held out",
        ),
        (
            {"kinds": {"given": kind(None, 0, 0, 0)}, "aligned_on": ["given"]},
            "given preference accuracy: not measured",
        ),
    ],
)
def test_a_worse_model_or_one_that_was_not_looked_at_is_stopped_and_named(
    changes: dict[str, Any], words: str
) -> None:
    verdict = judge(figures(**changes), schema.Gate())
    assert not verdict.open
    assert len(verdict.failures) == 1
    assert words in verdict.failures[0]


def test_how_few_are_enough_is_a_setting() -> None:
    few = figures({"given": kind(0.5, -0.5, 1.0, 4)})
    assert judge(few, schema.Gate(min_pairs=4)).passed
    assert not judge(few, schema.Gate(min_pairs=5)).passed
    # Who has six looked at wants a verdict on them; five of six are too few, and so are all of four, or of one.
    for pairs, looked_at, passed in (
        (6, 6, True),
        (5, 6, False),
        (4, 4, False),
        (1, 1, False),
        (19, 200, False),
    ):
        few["gate"]["kinds"]["given"]["pairs"] = pairs
        few["gate"]["max_pairs"] = looked_at
        assert judge(few, schema.Gate()).passed is passed
    fallen = figures({"given": kind(-0.15, -0.2, -0.1)})
    assert judge(fallen, schema.Gate(max_given_accuracy_fall=0.1)).passed


def test_an_override_opens_and_is_recorded_but_only_when_it_was_needed() -> None:
    tolerance = schema.Gate(override_reason="known and accepted")
    closed = judge(figures(answer_loss_change=1.2), tolerance)
    assert closed.open
    assert not closed.passed
    assert closed.record()["override_reason"] == "known and accepted"
    assert judge(figures(), tolerance).record()["override_reason"] is None


def test_what_the_data_do_not_have_is_named_and_not_asked_for() -> None:
    verdict = judge(figures(kinds={}, aligned_on=[], answers=0), schema.Gate())
    assert verdict.passed
    assert "answer loss: not measured (no answers are held out)" in verdict.checks
    assert judge({"gate": {"model": "train", "parent": None}}, schema.Gate()).passed


def test_a_gate_that_looked_at_nothing_is_closed() -> None:
    nothing = figures(answers=0, aligned_on=[])
    nothing["gate"]["kinds"] = {}
    verdict = judge(nothing, schema.Gate())
    assert verdict.failures == ["nothing that is held out tells align from train"]


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
