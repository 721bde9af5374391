"""The same run in other layouts: packed, with recomputation, as two processes; and killed on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import events, start, write_job
from safetensors.torch import load_file

from pipeline import schema

STEPS = {
    "max_steps": 4,
    "global_batch_size": 8,
    "micro_batch_size": 8,
    "warmup_steps": 0,
    "precision": "fp32",
}
TRAIN = {**STEPS, "lr": 3e-3, "validation_batches": 3}
ALIGN = {**STEPS, "lr": 1e-3, "beta": 0.5}
LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {"packing": True},
    "packed, accumulated": {"packing": True, "micro_batch_size": 2},
    "recomputed": {"parallel": schema.Parallel(recompute="full")},
    "2 x ddp": {"processes": 2, "micro_batch_size": 4},
    "2 x ddp, accumulated, packed": {"processes": 2, "micro_batch_size": 2, "packing": True},
    "2 x fsdp2": {"processes": 2, "micro_batch_size": 4, "parallel": schema.Parallel(strategy="fsdp2")},
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
    + [("align", name) for name in ("packed", "2 x ddp", "2 x fsdp2, accumulated, packed")],
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
