"""Attributes of answers: what a record may carry, and how it is written."""

from __future__ import annotations

import pytest

from pipeline import attributes

CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def test_the_line_is_the_same_whatever_the_order() -> None:
    line = "\n\nAttributes: helpfulness 4, verbosity 1"
    assert attributes.line({"verbosity": 1, "helpfulness": 4}) == line
    assert attributes.line({"helpfulness": 4, "verbosity": 1}) == line
    assert attributes.line({}) == ""


def test_it_stands_behind_the_last_user_turn() -> None:
    made = attributes.conditioned(CHAT, {"verbosity": 0})
    assert [turn["content"] for turn in made] == ["One?", "Two.", "Three?\n\nAttributes: verbosity 0"]
    assert CHAT[-1]["content"] == "Three?"
    tool = [*CHAT, {"role": "assistant", "content": "Look."}, {"role": "tool", "content": "4"}]
    assert attributes.conditioned(tool, {"verbosity": 0})[2:] == [made[2], *tool[3:]]
    assert attributes.conditioned(CHAT, {}) == CHAT


def test_records_carry_them_in_one_key_or_in_helpsteers_columns() -> None:
    columns = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}
    assert attributes.of_record({"attributes": {"verbosity": 2, "helpfulness": 3}}) == (
        {"helpfulness": 3, "verbosity": 2},
        None,
    )
    assert attributes.of_record({"prompt": "p", "response": "r", **columns}) == (columns, None)
    # Columns of these names that are not HelpSteer's are none of ours.
    assert attributes.of_record({**columns, "helpfulness": 0.5}) == ({}, None)
    assert attributes.of_record({"prompt": "p"}) == ({}, None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"verbosity": 5}, "verbosity is '5', not a whole number from 0 to 4"),
        ({"verbosity": -1}, "not a whole number"),
        ({"verbosity": 2.0}, "not a whole number"),
        ({"verbosity": True}, "not a whole number"),
        ({"Very'wordy": 1}, "not a name of small letters"),
        ([1], "not an object"),
    ],
)
def test_anything_else_is_told(values: object, words: str) -> None:
    found, fault = attributes.of_record({"attributes": values})
    assert found == {}
    assert words in str(fault)


def test_verbosity_is_measured_by_words() -> None:
    levels = [
        attributes.measured(["verbosity"], "word " * count)["verbosity"]
        for count in (1, 5, 6, 8, 9, 12, 13, 20, 21)
    ]
    assert levels == [0, 0, 1, 1, 2, 2, 3, 3, 4]
