"""The stages on these engines as the controller starts them, on a machine without GPUs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import events, load_step, start, write_job
from safetensors.torch import load_file

from pipeline.engines.aligner import step as aligner_step
from pipeline.engines.nemo import step as nemo_step
from pipeline.engines.nemo import submit
from pipeline.schema import Nemo
from pipeline.stages.step import InputError, Step

SHAPE = {"hidden_size": 32, "intermediate_size": 64, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128}


def job(stage: str, work: Path, module: str, data: Path, pretrained: Path | None, **settings: object) -> Path:
    inputs = {"data": data, **({"pretrain": pretrained} if pretrained else {})}
    path = write_job(stage, work, inputs, model=SHAPE, **{stage: settings})
    plain = json.loads(path.read_text())
    path.write_text(json.dumps({**plain, "module": module}))
    return path


def sealed(step: Step) -> set[str]:
    lines = (step.work / "seals.jsonl").read_text().splitlines()
    return {Path(json.loads(line)["piece"]).name for line in lines}


def test_fine_tuning_stops_before_training_and_says_how_to_go_on(
    data: Path, pretrained: Path, tmp_path: Path
) -> None:
    path = job(
        "train", tmp_path, "pipeline.engines.nemo.step", data, pretrained, engine="nemo", nemo=Nemo(gpus=2)
    )
    process = start(path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    (error,) = events(tmp_path, "error")
    assert "the recipe is for 2 GPUs, and this machine has 0 and no Transformer Engine" in error["text"]
    assert str(tmp_path / "output" / "submission" / "submit.sh") in error["text"]
    assert [event["name"] for event in events(tmp_path, "phase")] == ["recipe", "data", "check", "convert"]
    for made in (
        "state/data/training.jsonl",
        "state/start/weights/metadata.json",
        "output/submission/recipe.yaml",
    ):
        assert (tmp_path / made).is_file(), made
    assert str(tmp_path / "state" / "start") in (tmp_path / "output/submission/recipe.yaml").read_text()
    assert sealed(load_step(path)) == {"data", "start"}


def test_pretraining_does_too(data: Path, tmp_path: Path) -> None:
    step = load_step(job("pretrain", tmp_path, "", data, None, engine="nemo", nemo=Nemo(gpus=1, nodes=1)))
    with pytest.raises(InputError, match=r"pretrain\.engine: nemo-toolkit trains on GPUs"):
        nemo_step.run(step)
    assert (tmp_path / "state/data/train.idx").is_file()
    assert sealed(step) == {"data"}


def test_what_training_leaves_is_published(
    data: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the step but the training, in whose place the start is left as the last of two checkpoints."""

    def train(tree: Any, name: str, gpus: int) -> bool:
        assert (name, gpus) == ("train", 2)
        for age, step in enumerate(("step=8-last", "step=4")):
            checkpoint = Path(tree.log.log_dir) / "train" / "checkpoints" / step
            shutil.copytree(tree.resume.restore_config.path, checkpoint)
            os.utime(checkpoint / "weights" / "metadata.json", (9e8 - age, 9e8 - age))
        (checkpoint / "weights" / "__0_0.distcp").write_bytes(b"older, and not what is published")
        return True

    monkeypatch.setattr(submit, "train", train)
    monkeypatch.setattr(nemo_step, "_require_gpus", lambda *_: None)
    settings = {"engine": "nemo", "max_steps": 8, "nemo": Nemo(gpus=2)}
    step = load_step(job("train", tmp_path, "", data, pretrained, **settings))
    step.settings["model"]["context"] = 64  # less than the model's
    nemo_step.run(step)
    assert json.loads((tmp_path / "output/model.json").read_text()) == {"kind": "full", "path": "model"}
    before, after = (load_file(f / "model/model.safetensors") for f in (pretrained, tmp_path / "output"))
    assert all(torch.equal(before[name], after[name]) for name in before | after)
    old, new = (json.loads((f / "model/config.json").read_text()) for f in (pretrained, tmp_path / "output"))
    assert new["max_position_embeddings"] == old["max_position_embeddings"] == 128
    assert new["torch_dtype"] == "float32"
    assert (tmp_path / "output/submission/recipe.yaml").is_file()
    assert json.loads((tmp_path / "result.json").read_text())["headline"] == "8 steps by nemo-toolkit"


def test_alignment_hands_over_to_the_container(data: Path, pretrained: Path, tmp_path: Path) -> None:
    settings = {"engine": "aligner", "global_batch_size": 2, "micro_batch_size": 1, "nemo": Nemo(gpus=2)}
    step = load_step(job("align", tmp_path, "", data, pretrained, **settings))
    with pytest.raises(InputError, match="NeMo-Aligner trains in its own container"):
        aligner_step.run(step)
    assert sealed(step) == {"data", "start"}
    script = (tmp_path / "output/submission/dpo.sh").read_text()
    assert f"++pretrained_checkpoint.restore_from_path={tmp_path}/state/start " in script
    (message,) = events(tmp_path, "message")
    assert "names of configuration and data are read by nemo-aligner's code" in message["text"]
