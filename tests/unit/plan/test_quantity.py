"""A number knows its derivation, and prints in sizes that a person reads."""

from __future__ import annotations

import math

import pytest

from pipeline.plan.quantity import Quantity, given, total, words


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (725e12, "FLOP/s", "725 TFLOP/s"),
        (5.76e23, "FLOP", "5.76e+23 FLOP"),
        (8_030_261_248, "parameter", "8.03B parameter"),
        (14_079, "token/s", "14.1k token/s"),
        (80e9, "B", "80 GB"),
        (0.0123, "s", "12.3 ms"),
        (90.0, "s", "1.5 min"),
        (36_000.0, "s", "10 h"),
        (30_840_000, "h", "30,840,000 h"),
        (1234.5, "USD", "USD 1,234"),
        (0.0021, "USD", "USD 0.0021"),
        (0.41, "", "0.41"),
        (math.inf, "B", "inf B"),
    ],
)
def test_sizes_are_readable(value: float, unit: str, expected: str) -> None:
    assert words(value, unit) == expected


def test_a_derivation_goes_down_to_what_was_given() -> None:
    weights = Quantity(
        "weights", 16e9, "B", "2 x parameters", (given("parameters", 8e9, "parameter", "recipe"),)
    )
    whole = total("model states", (weights, given("margin", 1e9, "B", "measured")))
    assert whole.value == 17e9
    assert list(whole.derivation()) == [
        "model states: 17 GB = sum",
        "  weights: 16 GB = 2 x parameters",
        "    parameters: 8B parameter  [recipe]",
        "  margin: 1 GB  [measured]",
    ]


def test_what_has_been_derived_is_not_derived_again() -> None:
    part = Quantity("part", 2.0, "", "1 + 1", (given("one", 1.0),))
    seen: set[Quantity] = set()
    lines = [*part.derivation(0, seen), *Quantity("whole", 4.0, "", "2 x part", (part,)).derivation(0, seen)]
    assert lines == ["part: 2 = 1 + 1", "  one: 1", "whole: 4 = 2 x part", "  part: 2 (above)"]


def test_json_has_no_infinities() -> None:
    found = Quantity("time", math.inf, "s", "work / speed", (given("speed", 0.0, "FLOP/s"),)).as_dict()
    assert found["value"] is None
    assert found["inputs"] == [{"name": "speed", "value": 0.0, "unit": "FLOP/s"}]
