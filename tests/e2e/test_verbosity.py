"""What is asked for is what is answered: short answers by one attribute's value, longer ones by another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import Lifecycle

RECIPE = "llama-mini-verbosity"
ANSWERS = 100


@pytest.mark.full
def test_the_value_that_is_asked_for_decides_how_long_answers_are(tmp_path: Path) -> None:
    lifecycle = Lifecycle(tmp_path / "runs", "")
    words = []
    for value in (0, 4):
        asked = (
            f"evaluate.attributes.verbosity={value} evaluate.generations={ANSWERS} evaluate.shown={ANSWERS}"
        )
        said = lifecycle("evaluate", recipe=RECIPE, settings=asked)
        if value:
            assert "train     up to date" in said, "asking needs no other training"
        report = json.loads((lifecycle.latest("evaluate", RECIPE) / "evaluation.json").read_text())
        answers = [each["models"]["train"] for each in report["answers"]]
        assert len(answers) == ANSWERS
        words.append(sum(len(answer.split()) for answer in answers) / ANSWERS)
    short, long = words
    assert long > 1.5 * short, words
