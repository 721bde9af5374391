"""Training that comes apart, learns nothing, or is asked to stop: nothing is published, and it says so."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import events, start, write_job
from safetensors.torch import load_file

from pipeline import schema
from pipeline.engines.automodel.diverged import finite_weights, learned_nothing, require_finite
from pipeline.stages.ending import INTERRUPTED
from pipeline.stages.seals import keep_sound, read_seals
from pipeline.stages.step import InputError


def outcome(job: Path) -> int:
    process = start(job)
    try:
        process.communicate(timeout=200)
    finally:
        process.kill()
    return process.returncode


def sealed_steps(work: Path) -> list[int]:
    names = (name.rpartition("_step_") for name in read_seals(work) if "_step_" in name)
    return sorted(int(step) + 1 for _, _, step in names)


@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_a_loss_that_is_no_number_stops_the_step_and_says_what_to_try(
    tmp_path: Path, curated: Path, pretrained: Path, stage: str
) -> None:
    """``weight_decay=1000`` was a green "done, validation loss nan", which the next steps rested on."""
    inputs = {"data": curated} | ({} if stage == "pretrain" else {"pretrain": pretrained})
    blown = {"weight_decay": 1000.0, "lr": 0.5, "max_steps": 60, "warmup_steps": 0, "precision": "fp32"}
    changes = {stage: {**blown, "checkpoint_every": 1, "keep_checkpoints": 50}}
    work = tmp_path / "w"
    job = write_job(stage, work, inputs, **changes)
    assert outcome(job) == 2
    text = events(work, "error")[0]["text"]
    assert f"{stage}: " in text
    assert "a lower " + f"{stage}.weight_decay (now 1000; 0.1 is usual), a lower {stage}.lr (now 0.5)" in text
    assert "nothing is published" in text
    assert not (work / "result.json").exists()
    assert not (work / "output" / "model").exists()
    sealed = sealed_steps(work)
    assert sealed
    assert f"The last good checkpoint is that of step {sealed[-1]}" in text
    weights = sorted((work / "state" / "checkpoints").rglob("*.safetensors"))
    assert weights
    for file in weights:
        assert all(bool(torch.isfinite(value).all()) for value in load_file(file).values())
    for line in (work / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))

    keep_sound(work, lambda path, reason: pytest.fail(reason))  # as the controller does before it goes on
    assert outcome(job) == 2
    assert events(work, "error")[1]["text"] == text
    assert sealed_steps(work) == sealed


def test_a_model_that_guesses_worse_than_chance_is_told(tmp_path: Path, curated: Path) -> None:
    work = tmp_path / "w"
    job = write_job(
        "pretrain", work, {"data": curated}, pretrain={"weight_decay": 40.0, "lr": 1.0, "max_steps": 3}
    )
    assert outcome(job) == 0
    metrics = json.loads((work / "result.json").read_text())["metrics"]
    assert metrics["validation_loss"] > math.log(600)
    assert any("above that of guessing, 6.397" in event["text"] for event in events(work, "warning"))


def test_asked_to_stop_it_stops_also_where_every_step_writes_a_checkpoint(
    tmp_path: Path, curated: Path
) -> None:
    work = tmp_path / "w"
    changes = {"checkpoint_every": 1, "max_steps": 2000, "micro_batch_size": 4}
    process = start(write_job("pretrain", work, {"data": curated}, pretrain=changes))
    try:
        deadline = time.monotonic() + 150
        while len(sealed_steps(work)) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == INTERRUPTED
    assert "stopped after writing a checkpoint" in events(work, "message")[-1]["text"]
    assert 2 <= sealed_steps(work)[-1] < 2000


def test_the_runs_visits_are_in_the_record(
    tmp_path: Path, curated: Path, run_stage: Callable[..., Path]
) -> None:
    batch = {"max_steps": 2, "global_batch_size": 8, "micro_batch_size": 8, "warmup_steps": 0}
    work = run_stage("pretrain", tmp_path / "w", {"data": curated}, pretrain=batch)
    metrics = json.loads((work / "result.json").read_text())["metrics"]
    assert metrics["visits"] == 16
    assert metrics["never_visited"] == metrics["examples"] - 16 > 0
    assert metrics["validation_looked_at"] == min(metrics["validation_examples"], 64)
    told = [event["text"] for event in events(work, "message")]
    assert any(
        f"{metrics['never_visited']:,} of {metrics['examples']:,} examples are not visited" in t for t in told
    )


def test_what_is_tried_first_is_what_is_most_unusual(tmp_path: Path) -> None:
    plain = schema.Train(peft="lora", lora=schema.Lora(lr=0.25), precision="bf16-weights", grad_clip=5.0)
    require_finite({"the loss": 3.0, "the norm": torch.tensor(1.0)}, 7, plain, "train", tmp_path)
    with pytest.raises(InputError) as refused:
        require_finite({"the loss": math.inf}, 7, plain, "train", tmp_path)
    text = str(refused.value)
    assert text.startswith("train: the loss after step 7 of 500 is inf: ")
    assert "There was no checkpoint yet" in text
    assert "a lower train.lora.lr (now 0.25), more train.warmup_steps" in text
    assert "weight_decay" not in text
    assert "train.grad_clip (now 5; 1 is usual), train.precision=bf16" in text
    (tmp_path / "epoch_0_step_4").mkdir()
    (tmp_path / "LATEST").symlink_to("epoch_0_step_4")
    with pytest.raises(InputError, match="that of step 5; the same command goes on from it"):
        require_finite({"the loss": math.nan}, 7, plain, "train", tmp_path)


def test_weights_are_looked_at_to_the_last() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert finite_weights([model], 1, "cpu")
    model[1].weight.data[1, 1] = math.inf
    assert not finite_weights([model], 1, "cpu")
    model[1].weight.requires_grad_(False)
    assert finite_weights([model], 1, "cpu")


@pytest.mark.parametrize(
    ("loss", "first", "vocabulary", "words"),
    [
        (6.3, 6.4, 600, None),
        (6.5, 9.0, 600, "above that of guessing"),
        (5.0, 4.5, 600, "above the training loss of the first step, 4.500"),
        (0.7, 0.69, None, "above the training loss of the first step"),
        (0.6, 0.69, None, None),
        (5.0, None, 600, None),
        (5.0, None, None, None),
    ],
)
def test_a_loss_is_held_to_chance_and_to_the_start(
    loss: float, first: float | None, vocabulary: int | None, words: str | None
) -> None:
    told = learned_nothing(loss, first, vocabulary)
    assert (told is None) if words is None else (words in str(told))


def test_a_first_loss_that_is_no_number_is_the_models_own(tmp_path: Path) -> None:
    from pipeline import schema
    from pipeline.engines.automodel.diverged import require_finite

    for figures, done, told in (
        ({"the loss": float("nan")}, 1, True),
        ({"the loss": float("nan")}, 2, False),
        ({"the validation loss": float("nan")}, 1, False),
    ):
        with pytest.raises(InputError) as caught:
            require_finite(figures, done, schema.Train(), "train", tmp_path)
        assert ("look at its weights first" in str(caught.value)) is told
