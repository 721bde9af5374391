"""The reference's scores are computed once, and taken by an alignment that has the same reference and data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import events
from safetensors.torch import load_file

from pipeline.runner.store import file_table

ALIGN = {"max_steps": 6, "global_batch_size": 4, "micro_batch_size": 4, "warmup_steps": 0, "lr": 1e-3}
SCORING = "score with the reference"


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, curated: Path, run_stage: Callable[..., Path]
) -> dict[str, Path]:
    made = run_stage("pretrain", tmp_path_factory.mktemp("pretrain"), {"data": curated}) / "output"
    return {"data": curated, "pretrain": made}


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory, run_stage: Callable[..., Path], inputs: dict[str, Path]
) -> Path:
    """An alignment's artifact, with the part of a manifest that is read."""
    artifact = run_stage("align", tmp_path_factory.mktemp("first"), inputs, align=ALIGN) / "output"
    (artifact / "manifest.json").write_text(json.dumps({"files": file_table(artifact)}))
    return artifact


def phases(work: Path) -> list[str]:
    return [event["name"] for event in events(work, "phase")]


def test_another_beta_and_loss_take_the_scores(
    tmp_path: Path, run_stage: Callable[..., Path], inputs: dict[str, Path], published: Path
) -> None:
    for change in ({"beta": 0.3}, {"loss": "ipo", "lr": 2e-3}):
        settings = {**ALIGN, **change}
        name = "-".join(change)
        anew = run_stage("align", tmp_path / f"{name}-anew", inputs, align=settings)
        taken = run_stage("align", tmp_path / f"{name}-taken", inputs, earlier=[published], align=settings)
        assert SCORING in phases(anew)
        assert SCORING not in phases(taken)
        assert f"align/{published.name}" in events(taken, "message")[-1]["text"]
        for file in ("model/model.safetensors", "reference.safetensors"):
            assert (anew / "output" / file).read_bytes() == (taken / "output" / file).read_bytes()


@pytest.mark.parametrize("change", [{"seed": 7}, {"max_steps": 7}, {"precision": "fp32"}, {"packing": True}])
def test_what_the_scores_rest_on_makes_them_anew(
    tmp_path: Path,
    run_stage: Callable[..., Path],
    inputs: dict[str, Path],
    published: Path,
    change: dict[str, object],
) -> None:
    work = run_stage("align", tmp_path / "w", inputs, earlier=[published], align={**ALIGN, **change})
    assert SCORING in phases(work)


def test_another_reference_is_scored_anew(
    tmp_path: Path, run_stage: Callable[..., Path], inputs: dict[str, Path], published: Path
) -> None:
    other = run_stage("pretrain", tmp_path / "p", {"data": inputs["data"]}, pretrain={"seed": 3}) / "output"
    work = run_stage("align", tmp_path / "w", {**inputs, "pretrain": other}, earlier=[published], align=ALIGN)
    assert SCORING in phases(work)
    before, after = (load_file(f / "reference.safetensors")["train"] for f in (published, work / "output"))
    assert not torch.equal(torch.nan_to_num(before), torch.nan_to_num(after))


def test_scores_that_changed_on_the_disk_are_not_taken(
    tmp_path: Path, run_stage: Callable[..., Path], inputs: dict[str, Path], published: Path
) -> None:
    rotten = tmp_path / "rotten"
    rotten.mkdir()
    content = bytearray((published / "reference.safetensors").read_bytes())
    content[-3] ^= 1
    (rotten / "reference.safetensors").write_bytes(content)
    (rotten / "manifest.json").write_bytes((published / "manifest.json").read_bytes())
    work = run_stage("align", tmp_path / "w", inputs, earlier=[rotten, tmp_path / "gone"], align=ALIGN)
    assert SCORING in phases(work)
    assert "is not what was published" in events(work, "warning")[0]["text"]
