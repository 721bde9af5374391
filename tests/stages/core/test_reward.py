"""The reward model on the real AutoModel, and its published folder in transformers alone."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_step, start, write_job
from safetensors.torch import load_file

from pipeline import schema
from pipeline.engines.automodel import tokenise
from pipeline.engines.automodel.examples import IGNORED
from pipeline.engines.automodel.reward import scalar_head, scored_at_end
from pipeline.stages import reward
from pipeline.stages.seals import read_seals
from pipeline.stages.step import InputError

STEPS = {
    "max_steps": 24,
    "global_batch_size": 16,
    "micro_batch_size": 16,
    "warmup_steps": 0,
    "precision": "fp32",
    "lr": 5e-3,
    "validation_batches": 50,  # more than there are: all validation pairs
    "checkpoint_every": 8,
}


@pytest.fixture(scope="module")
def inputs(curated: Path, pretrained: Path) -> dict[str, Path]:
    return {"data": curated, "pretrain": pretrained}


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory, run_stage: Callable[..., Path], inputs: dict[str, Path]
) -> dict[str, Path]:
    """A reward model of each kind, undisturbed."""
    return {
        peft: run_stage(
            "reward",
            tmp_path_factory.mktemp("reward"),
            inputs,
            reward={**STEPS, "peft": peft, "packing": False},
        )
        for peft in ("none", "lora")
    }


def logged(work: Path) -> list[dict[str, Any]]:
    lines = (work / "state" / "checkpoints" / "training.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def by_transformers(model: Path, data: Path) -> list[tuple[str, float, float]]:
    """Kind and both scores of the validation pairs, from the published folder alone, in padded batches."""
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(data / "tokenizer")
    scorer = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    assert type(scorer).__name__ == "LlamaForSequenceClassification"
    assert scorer.config.num_labels == 1
    found = []
    for record in tokenise.read_records(data / "preference" / "validation.jsonl"):
        turns = [{"role": "user", "content": record["prompt"]}]
        prompt = tokenise.prompt_ids(tokenizer, turns)
        sides = [
            prompt + tokenise.answer_ids(tokenizer, turns, record[side]) for side in ("chosen", "rejected")
        ]
        batch = tokenizer.pad({"input_ids": sides}, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            scores = scorer(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
        found.append((record["kind"], *scores))
    return found


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_it_ranks_pairs_and_transformers_alone_gives_the_same_scores(
    trained: dict[str, Path], inputs: dict[str, Path], peft: str
) -> None:
    work = trained[peft]
    assert logged(work)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)  # the head begins at zero
    held_out = json.loads((work / "result.json").read_text())["metrics"]["held_out"]
    assert held_out["style_accuracy"] > 0.6
    assert held_out["style_margin"] > 0
    assert 0 <= held_out["calibration_error"] < 0.5
    assert sorted(path.name for path in (work / "output").iterdir()) == ["model", "model.json"]
    scores = by_transformers(work / "output" / "model", inputs["data"])
    assert held_out["pairs"] == len(scores)
    both = torch.tensor([side for _, *sides in scores for side in sides])
    assert held_out["reward_mean"] == pytest.approx(float(both.mean()), abs=1e-4)
    assert held_out["reward_spread"] == pytest.approx(float(both.std(unbiased=False)), abs=1e-4)
    for kind in ("style", "content"):
        own = [(chosen, rejected) for k, chosen, rejected in scores if k == kind]
        accuracy = sum(chosen > rejected for chosen, rejected in own) / len(own)
        assert held_out[f"{kind}_accuracy"] == pytest.approx(accuracy, abs=1.5 / len(own))
        chosen = sum(chosen for chosen, _ in own) / len(own)
        assert held_out[f"{kind}_chosen_reward"] == pytest.approx(chosen, abs=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"processes": 2, "micro_batch_size": 4, "packing": True},
        {
            "processes": 2,
            "micro_batch_size": 8,
            "packing": True,
            "parallel": schema.Parallel(strategy="fsdp2"),
        },
    ],
    ids=["2 x ddp, accumulated, packed", "2 x fsdp2, packed"],
)
def test_every_layout_trains_the_same(
    tmp_path: Path,
    run_stage: Callable[..., Path],
    trained: dict[str, Path],
    inputs: dict[str, Path],
    change: dict[str, Any],
) -> None:
    processes = change.pop("processes", 1)
    settings = {"parallel": schema.Parallel(), **STEPS, "peft": "none", **change}
    work = run_stage("reward", tmp_path / "w", inputs, reward=settings, launch={"processes": processes})
    wanted, found = logged(trained["none"]), logged(work)
    # Rounding grows from step to step, so the first ones are held close and the end loosely.
    for name, tolerance in (("loss", 1e-3), ("grad_norm", 1e-2)):
        assert [row[name] for row in found[:6]] == pytest.approx(
            [row[name] for row in wanted[:6]], rel=tolerance
        )
    figures = [json.loads((w / "result.json").read_text())["metrics"] for w in (trained["none"], work)]
    assert figures[1]["validation_loss"] == pytest.approx(figures[0]["validation_loss"], rel=2e-2)
    assert figures[1]["processes"] == processes


def test_a_killed_adapter_run_goes_on_to_the_same_bytes(
    tmp_path: Path, trained: dict[str, Path], inputs: dict[str, Path]
) -> None:
    """With adapters AutoModel's checkpoints hold nothing but adapters: the head must be among them."""
    work = tmp_path / "w"
    settings = {**STEPS, "peft": "lora", "packing": False, "parallel": schema.Parallel()}
    job = write_job("reward", work, inputs, reward=settings, launch={"processes": 1})
    process = start(job)
    deadline = time.monotonic() + 200
    while not any("checkpoints/" in piece for piece in read_seals(work)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (work / "result.json").exists()
    again = start(job)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    assert "Loading checkpoint from" in output
    made = {file.name: file.read_bytes() for file in (work / "output" / "model").iterdir()}
    assert {"config.json", "model.safetensors.index.json", "model-00002-of-00002.safetensors"} <= set(made)
    assert made == {file.name: file.read_bytes() for file in (trained["lora"] / "output" / "model").iterdir()}


def test_a_margin_needs_pairs_with_scores(tmp_path: Path, inputs: dict[str, Path]) -> None:
    job = write_job("reward", tmp_path / "w", inputs, reward={**STEPS, "margin": 1.0})
    with pytest.raises(InputError, match="has no score_chosen and score_rejected"):
        reward.run(load_step(job))


def test_the_head_is_added_without_a_copy_of_the_weights(tmp_path: Path, pretrained: Path) -> None:
    scalar_head(pretrained / "model", tmp_path / "start", pad=1)
    config = json.loads((tmp_path / "start" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert (tmp_path / "start" / "model-00001-of-00002.safetensors").is_symlink()
    assert not load_file(tmp_path / "start" / "model-00002-of-00002.safetensors")["score.weight"].any()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "config.json").write_text('{"architectures": ["NoSuchForCausalLM"], "hidden_size": 8}')
    with pytest.raises(InputError, match="NoSuchForCausalLM"):
        scalar_head(odd, tmp_path / "other", pad=None)


def test_scores_are_read_at_the_end_of_a_whole_answer(curated: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")
    record = {"prompt": "Why?", "chosen": "Because.", "rejected": "No idea at all."}
    pairs, _, _ = tokenise.preference_examples(tokenizer, [record], 64)
    made = scored_at_end(pairs)
    assert len(made) == 1
    for side, (first, last) in enumerate(
        zip(made.offsets[:-1].tolist(), made.offsets[1:].tolist(), strict=True)
    ):
        answer = record["rejected" if side else "chosen"]
        assert tokenizer.decode(made.inputs[first:last].tolist()).endswith(f"{answer}{tokenizer.eos_token}")
        labels = made.labels[first:last].tolist()
        assert labels[:-1] == [IGNORED] * (last - first - 1)
        assert labels[-1] != IGNORED
