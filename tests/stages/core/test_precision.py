"""`precision: auto` follows a measurement, once a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import write_job

from pipeline.engines.automodel import precision
from pipeline.schema import Train
from pipeline.stages.seals import read_seals
from pipeline.stages.step import Step


@pytest.mark.parametrize(("ratio", "chosen"), [(3.2, "bf16"), (0.4, "fp32")])
def test_the_measurement_decides_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, chosen: str
) -> None:
    step = Step.load(write_job("train", tmp_path / "w"))
    monkeypatch.setattr(precision, "bf16_speed", lambda: ratio)
    assert precision.choose(step, Train()) == chosen
    assert "state/precision.json" in read_seals(step.work)
    monkeypatch.setattr(
        precision, "bf16_speed", lambda: pytest.fail("an attempt that goes on measures nothing")
    )
    assert precision.choose(step, Train()) == chosen
    for asked in ("fp32", "bf16", "bf16-weights"):
        assert precision.choose(step, Train(precision=asked)) == asked
    assert precision.choose(step, Train(peft="qlora")) == "bf16"


def test_what_was_chosen_is_what_is_trained_and_told(
    tmp_path: Path, run_stage: Callable[..., Path], curated: Path
) -> None:
    made = run_stage("pretrain", tmp_path / "auto", {"data": curated}, pretrain={"precision": "auto"})
    chosen = json.loads((made / "result.json").read_text())["metrics"]["precision"]
    told = json.loads((made / "state" / "precision.json").read_text())
    assert told["precision"] == chosen == ("bf16" if told["bf16_speed"] > 1.3 else "fp32")
    same = run_stage("pretrain", tmp_path / "named", {"data": curated}, pretrain={"precision": chosen})
    name = "output/model/model.safetensors"
    assert (made / name).read_bytes() == (same / name).read_bytes()
