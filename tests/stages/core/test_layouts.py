"""The same run in other layouts: packed, with recomputation, as two processes; and killed on the way."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import events, start, write_job
from safetensors.torch import load_file

from pipeline import schema
from pipeline.stages.seals import keep_sound, read_seals

STEPS = {
    "max_steps": 4,
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "warmup_steps": 0,
    "precision": "fp32",
}
TRAIN = {**STEPS, "lr": 3e-3, "validation_batches": 3}
LORA = {**TRAIN, "peft": "lora"}
ALIGN = {**STEPS, "lr": 1e-3, "beta": 0.5}
LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"packing": True},
    "packed, accumulated": {"packing": True, "micro_batch_size": 2},
    "recomputed": {"parallel": schema.Parallel(recompute="full")},
    "2 x ddp": {"processes": 2, "micro_batch_size": 4},
    "2 x ddp, accumulated, packed": {"processes": 2, "micro_batch_size": 2, "packing": True},
    "2 x fsdp2": {"processes": 2, "micro_batch_size": 4, "parallel": schema.Parallel(strategy="fsdp2")},
    "tensor over 2": {"processes": 2, "parallel": schema.Parallel(strategy="fsdp2", tensor=2)},
    "tensor over 2, packed": {
        "processes": 2,
        "packing": True,
        "parallel": schema.Parallel(strategy="fsdp2", tensor=2),
    },
    "2 x fsdp2, accumulated, packed": {
        "processes": 2,
        "micro_batch_size": 2,
        "packing": True,
        "parallel": schema.Parallel(strategy="fsdp2"),
    },
}


def layout(stage: str, base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    changed = dict(change)
    launch = {"processes": changed.pop("processes", 1)}
    return {stage: {"parallel": schema.Parallel(), **base, **changed}, "launch": launch}


def outcome(work: Path) -> tuple[list[float], list[float], float, dict[str, Any]]:
    """Loss and gradient norm of each step, the validation loss, and the published weights."""
    log = (work / "state" / "checkpoints" / "training.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in log]
    figures = json.loads((work / "result.json").read_text())["metrics"]
    weights = load_file(work / "output" / "model" / "model.safetensors")
    return [r["loss"] for r in rows], [r["grad_norm"] for r in rows], figures["validation_loss"], weights


@pytest.fixture(scope="module")
def pretrained(
    tmp_path_factory: pytest.TempPathFactory, curated: Path, run_stage: Callable[..., Path]
) -> Path:
    """A model whose key-value heads two processes can share."""
    shape = {"heads": 4, "kv_heads": 2}
    return (
        run_stage("pretrain", tmp_path_factory.mktemp("pretrain"), {"data": curated}, model=shape) / "output"
    )


@pytest.fixture(scope="module")
def plain(
    tmp_path_factory: pytest.TempPathFactory,
    run_stage: Callable[..., Path],
    curated: Path,
    pretrained: Path,
) -> dict[str, Any]:
    """The runs that all others are held against: one process, padded."""
    inputs = {"data": curated, "pretrain": pretrained}
    made = {}
    for stage, base in (("train", TRAIN), ("align", ALIGN)):
        folder = tmp_path_factory.mktemp(stage)
        made[stage] = outcome(run_stage(stage, folder, inputs, **layout(stage, base, {})))
    return made


@pytest.mark.parametrize(
    ("stage", "name"),
    [("train", name) for name in LAYOUTS]
    + [
        ("align", name)
        for name in ("packed", "2 x ddp", "tensor over 2, packed", "2 x fsdp2, accumulated, packed")
    ],
)
def test_every_layout_trains_the_same(
    tmp_path: Path,
    run_stage: Callable[..., Path],
    curated: Path,
    pretrained: Path,
    plain: dict[str, Any],
    stage: str,
    name: str,
) -> None:
    base = {"train": TRAIN, "align": ALIGN}[stage]
    inputs = {"data": curated, "pretrain": pretrained}
    work = run_stage(stage, tmp_path / "w", inputs, **layout(stage, base, LAYOUTS[name]))
    losses, norms, validation, weights = outcome(work)
    wanted = plain[stage]
    assert losses == pytest.approx(wanted[0], rel=2e-4)
    assert norms == pytest.approx(wanted[1], rel=2e-3)
    assert validation == pytest.approx(wanted[2], rel=2e-4)
    assert set(weights) == set(wanted[3])
    for key, tensor in wanted[3].items():
        torch.testing.assert_close(weights[key], tensor, rtol=1e-3, atol=3e-4)
    processes = json.loads((work / "result.json").read_text())["metrics"]["processes"]
    assert processes == LAYOUTS[name].get("processes", 1)


@pytest.fixture(scope="module")
def adapted(
    tmp_path_factory: pytest.TempPathFactory,
    run_stage: Callable[..., Path],
    curated: Path,
    pretrained: Path,
) -> Path:
    """Adapters trained in one process."""
    inputs = {"data": curated, "pretrain": pretrained}
    return run_stage("train", tmp_path_factory.mktemp("adapted"), inputs, **layout("train", LORA, {}))


@pytest.mark.parametrize("name", ["2 x ddp", "2 x fsdp2, accumulated, packed", "tensor over 2"])
def test_adapters_start_and_train_the_same_in_every_layout(
    tmp_path: Path, run_stage: Callable[..., Path], curated: Path, pretrained: Path, adapted: Path, name: str
) -> None:
    inputs = {"data": curated, "pretrain": pretrained}
    work = run_stage("train", tmp_path / "w", inputs, **layout("train", LORA, LAYOUTS[name]))
    ours, wanted = (
        torch.tensor(
            [[row["loss"], row["grad_norm"]] for row in map(json.loads, log.read_text().splitlines())]
        )
        for log in (folder / "state" / "checkpoints" / "training.jsonl" for folder in (work, adapted))
    )
    assert ours[:, 0].tolist() == pytest.approx(wanted[:, 0].tolist(), rel=2e-4)
    assert ours[:, 1].tolist() == pytest.approx(wanted[:, 1].tolist(), rel=2e-3)
    file = "output/adapter/adapter_model.safetensors"
    trained = load_file(work / file)
    for key, tensor in load_file(adapted / file).items():
        torch.testing.assert_close(trained[key], tensor, rtol=2e-2, atol=2e-4)


def test_a_batch_that_two_processes_cannot_share_is_refused(
    tmp_path: Path, curated: Path, pretrained: Path
) -> None:
    settings = layout("train", {**TRAIN, "global_batch_size": 8, "micro_batch_size": 8}, {"processes": 2})
    inputs = {"data": curated, "pretrain": pretrained}
    process = start(write_job("train", tmp_path / "w", inputs, **settings))
    process.communicate(timeout=100)
    assert process.returncode == 2
    said = events(tmp_path / "w", "error")[0]["text"]
    assert "set the micro batch to at most 4" in said


KILLED: dict[str, tuple[str, dict[str, Any]]] = {
    "SFT": ("train", {}),
    "LoRA": ("train", {"peft": "lora"}),
    "SFT, 2 x ddp": ("train", {"processes": 2, "micro_batch_size": 4}),
    "LoRA, 2 x fsdp2": (
        "train",
        {
            "processes": 2,
            "micro_batch_size": 4,
            "peft": "lora",
            "parallel": schema.Parallel(strategy="fsdp2"),
        },
    ),
    "DPO": ("align", {}),
    "DPO, 2 x fsdp2": (
        "align",
        {"processes": 2, "micro_batch_size": 4, "parallel": schema.Parallel(strategy="fsdp2")},
    ),
}


@pytest.mark.parametrize("name", KILLED)
def test_killed_on_the_way_it_ends_with_the_same_bytes(
    tmp_path: Path, run_stage: Callable[..., Path], curated: Path, pretrained: Path, name: str
) -> None:
    stage, change = KILLED[name]
    base = {"train": TRAIN, "align": ALIGN}[stage]
    settings = layout(stage, {**base, "max_steps": 40, "checkpoint_every": 2, "precision": "bf16"}, change)
    inputs = {"data": curated, "pretrain": pretrained}
    whole = run_stage(stage, tmp_path / "whole", inputs, **settings)
    work = tmp_path / "killed"
    job = write_job(stage, work, inputs, **settings)
    process = start(job)
    while len(checkpoints(work)) < 2 and process.poll() is None:
        time.sleep(0.02)
    helpers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate(timeout=30)
    _, alive = psutil.wait_procs(helpers, timeout=20)
    assert not alive  # nobody goes on training
    assert not (work / "result.json").exists()
    keep_sound(work, lambda path, reason: pytest.fail(reason))  # as the controller does
    done = int(max(checkpoints(work)).rsplit("_", 1)[1])
    process = start(job)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    found = re.search(r"Loading checkpoint from \S+_step_(\d+)", output)
    assert found is not None, output
    assert int(found[1]) >= done
    for file in sorted((whole / "output").rglob("*.safetensors")):
        assert (work / "output" / file.relative_to(whole / "output")).read_bytes() == file.read_bytes()


def test_told_to_stop_the_best_weights_are_those_of_an_undisturbed_run(
    tmp_path: Path, run_stage: Callable[..., Path], curated: Path, pretrained: Path
) -> None:
    # The rate ruins the model on the way, so that the best look is not the last.
    ruin = {"lr": 1.0, "max_steps": 30, "warmup_steps": 29, "schedule": "constant", "best_every": 2}
    settings = layout("train", {**TRAIN, **ruin}, {})
    inputs = {"data": curated, "pretrain": pretrained}
    whole = run_stage("train", tmp_path / "whole", inputs, **settings)
    wanted = looks(whole)
    assert min(wanted.values()) < wanted[30]
    work = tmp_path / "stopped"
    job = write_job("train", work, inputs, **settings)
    for last in (False, True):
        process = start(job)
        while not last and len(checkpoints(work)) < 2 and process.poll() is None:
            time.sleep(0.005)
        if not last:
            process.terminate()
        output, _ = process.communicate(timeout=200)
        assert process.returncode == (0 if last else 75), output
        keep_sound(work, lambda path, reason: pytest.fail(reason))
    assert looks(work) == wanted
    name = "output/model/model.safetensors"
    assert (work / name).read_bytes() == (whole / name).read_bytes()


def looks(work: Path) -> dict[int, float]:
    """Validation loss by step, as reported by all attempts."""
    found = ((event["step"], event["values"]) for event in events(work, "metric"))
    return {step: values["validation_loss"] for step, values in found if "validation_loss" in values}


def test_bf16_over_two_processes_is_bf16_in_one(
    tmp_path: Path, run_stage: Callable[..., Path], curated: Path, pretrained: Path
) -> None:
    inputs = {"data": curated, "pretrain": pretrained}
    base = {**TRAIN, "precision": "bf16"}
    made = [
        outcome(run_stage("train", tmp_path / name, inputs, **layout("train", base, change)))
        for name, change in (("one", {}), ("two", LAYOUTS["2 x fsdp2"]))
    ]
    assert made[0][0] == pytest.approx(made[1][0], rel=0.01)
    assert made[0][1] == pytest.approx(made[1][1], rel=0.05)
    assert made[0][2] == pytest.approx(made[1][2], rel=0.01)


def checkpoints(work: Path) -> list[str]:
    """The sealed checkpoints of a run."""
    if not work.exists():
        return []
    return sorted(name for name in read_seals(work) if "checkpoints/" in name)
