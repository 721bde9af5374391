"""What curation did not make is missed before a later step spends hours, not after."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline import schema
from pipeline.runner.supply import lacking

STAGES = ["pretrain", "train", "reward", "sample", "align", "evaluate", "export", "deploy"]
ENOUGH = {name: {"train": 9, "validation": 1, "test": 0} for name in ("pretrain", "sft", "preference")}


def missing(
    data: str, split: str, recipe: schema.Recipe | None = None, stages: list[str] = STAGES
) -> list[str]:
    sizes: dict[str, Any] = {**ENOUGH, data: {**ENOUGH[data], split: 0}}
    return list(lacking(recipe or schema.Recipe(), stages, {"sizes": sizes}))


def test_enough_is_enough() -> None:
    assert list(lacking(schema.Recipe(), STAGES, {"sizes": ENOUGH})) == []
    assert list(lacking(schema.Recipe(), STAGES, {})) == []  # a curation that counts otherwise


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("data", "step"), [("pretrain", "pretrain"), ("sft", "train"), ("preference", "align")]
)
def test_a_step_without_training_or_validation_data_is_named(data: str, step: str, split: str) -> None:
    [fault] = missing(data, split, stages=[step])
    assert fault.startswith(f"{step} needs ")
    assert f" for {split}, and curation made none" in fault
    assert ("curate.validation_share" in fault) == (split == "validation")
    assert missing(data, split, stages=["evaluate", "export", "deploy"]) == []


def test_alignment_on_the_models_own_answers_needs_no_pairs_of_curation() -> None:
    recipe = schema.Recipe()
    recipe.align.pairs = "sample"
    assert missing("preference", "train", recipe, ["align"]) == []
    recipe.sample.prompts = "preferences"
    [fault] = missing("preference", "train", recipe, ["sample", "align"])
    assert fault.startswith("sample needs preference pairs for train")
