"""Sampling: draws that depend on nothing but their seed, and the data made of them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import load_step, start, write_job
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from pipeline.schema import Sample
from pipeline.stages import sample
from pipeline.stages.evaluate.answers import greedy_answers
from pipeline.stages.sample import expected_best
from pipeline.stages.sample.draw import draw, drawn_tokens, uniforms
from pipeline.stages.sample.score import rewards
from pipeline.stages.step import read_jsonl

QUESTIONS = ["What does f do?", "What is the class networkx.Graph for, if anything at all?", "Why?"]
RECORDS = [{"id": f"r{n}", "prompt": [{"role": "user", "content": q}]} for n, q in enumerate(QUESTIONS)]
SETTINGS: dict[str, Any] = {
    "max_prompts": 32,
    "max_held_out": 6,
    "answers": 4,
    "max_new_tokens": 40,
    "shard_prompts": 8,
}


@pytest.fixture(scope="module")
def tokenizer(curated: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")


@pytest.fixture(scope="module")
def model(pretrained: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(pretrained / "model", dtype=torch.float32).eval()


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[1.0, 3.0, -1.0, 2.0]]).expand(20_000, -1)
    chance = torch.from_numpy(np.random.default_rng(0).random(20_000))
    found = torch.bincount(drawn_tokens(logits, chance, 1.0, 1.0), minlength=4) / 20_000
    torch.testing.assert_close(found, logits[0].softmax(0), atol=0.01, rtol=0)
    colder = torch.bincount(drawn_tokens(logits, chance, 0.5, 1.0), minlength=4) / 20_000
    torch.testing.assert_close(colder, (logits[0] / 0.5).softmax(0), atol=0.01, rtol=0)
    # The likeliest two hold 0.88: a nucleus of 0.8 is these two, of 0.9 it takes the third in.
    nucleus = torch.bincount(drawn_tokens(logits, chance, 1.0, 0.8), minlength=4) / 20_000
    wanted = logits[0].softmax(0) * torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(nucleus, wanted / wanted.sum(), atol=0.01, rtol=0)
    assert set(drawn_tokens(logits, chance, 1.0, 0.9).tolist()) == {0, 1, 3}
    edges = drawn_tokens(logits[:2], torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0, 1.0)
    assert edges.tolist() == [0, 3]
    edges = drawn_tokens(logits[:2], torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64), 1.0, 0.9)
    assert edges.tolist() == [1, 0]
    certain = torch.tensor([[-torch.inf, 0.0, -torch.inf]]).expand(2, -1)
    assert drawn_tokens(certain, torch.tensor([0.0, 0.999], dtype=torch.float64), 1.0, 1.0).tolist() == [1, 1]


def test_a_prompt_draws_the_same_beside_any_others(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = Sample(answers=3, max_new_tokens=12, batch_size=64)
    together = draw(model, tokenizer, RECORDS, settings, lambda _: None)
    for batch_size, records in ((2, RECORDS), (64, RECORDS[::-1])):
        apart = draw(
            model,
            tokenizer,
            records,
            Sample(answers=3, max_new_tokens=12, batch_size=batch_size),
            lambda _: None,
        )
        assert (apart if records is RECORDS else apart[::-1]) == together
    assert len({each["text"] for own in together for each in own}) > 6
    other = draw(model, tokenizer, RECORDS, Sample(answers=3, max_new_tokens=12, seed=5), lambda _: None)
    assert other != together
    assert (uniforms(1, "a", 0, 8) != uniforms(1, "a", 1, 8)).all()


def test_without_heat_a_draw_is_the_greedy_answer(model: Any, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = Sample(answers=2, max_new_tokens=12, temperature=1e-6)
    drawn = draw(model, tokenizer, RECORDS, settings, lambda _: None)
    greedy = greedy_answers(model, tokenizer, [r["prompt"] for r in RECORDS], 12, 8, lambda *_: None)
    assert [[each["text"] for each in own] for own in drawn] == [[answer] * 2 for answer in greedy]


def test_expected_best_is_the_mean_over_all_choices() -> None:
    scores = [[0.3, -1.0, 2.0, 0.5], [1.0, 1.0, 4.0, -2.0]]
    for k in range(1, 5):
        slow = [np.mean([max(choice) for choice in combinations(own, k)]) for own in scores]
        assert expected_best(scores, 4)[k - 1] == pytest.approx(np.mean(slow), abs=1e-6)


@pytest.fixture(scope="module")
def inputs(
    tmp_path_factory: pytest.TempPathFactory, run_stage: Callable[..., Path], curated: Path, pretrained: Path
) -> dict[str, Path]:
    """What sampling rests on: a fine-tuned model (which ends its answers) and a reward model."""
    given = {"data": curated, "pretrain": pretrained}
    steps = {"max_steps": 40, "global_batch_size": 16, "micro_batch_size": 16, "warmup_steps": 2, "lr": 1e-2}
    trained = run_stage("train", tmp_path_factory.mktemp("train"), given, train=steps)
    given["train"] = trained / "output"
    reward = run_stage("reward", tmp_path_factory.mktemp("reward"), given, reward={**steps, "max_steps": 20})
    return {**given, "reward": reward / "output"}


@pytest.fixture(scope="module")
def sampled(
    tmp_path_factory: pytest.TempPathFactory, run_stage: Callable[..., Path], inputs: dict[str, Path]
) -> Path:
    return run_stage("sample", tmp_path_factory.mktemp("sample"), inputs, sample=SETTINGS)


def test_pairs_are_the_best_and_the_worst_of_the_answers(
    sampled: Path, inputs: dict[str, Path], tokenizer: PreTrainedTokenizerFast
) -> None:
    from pipeline.stages.sample.score import load_reward_model

    judge = load_reward_model(inputs["reward"] / "model")
    pairs = read_jsonl(sampled / "output" / "preference" / "train.jsonl")
    assert len(pairs) > 10
    for pair in pairs:
        assert pair["score_chosen"] > pair["score_rejected"]
        turns = [{"role": "user", "content": pair["prompt"]}]
        again = rewards(judge, tokenizer, [turns, turns], [pair["chosen"], pair["rejected"]], 1)
        assert again == pytest.approx([pair["score_chosen"], pair["score_rejected"]], abs=2e-4)
    best = {r["messages"][0]["content"]: r for r in read_jsonl(sampled / "output" / "sft" / "train.jsonl")}
    for pair in pairs:
        assert best[pair["prompt"]]["messages"][-1]["content"] == pair["chosen"]
    asked = {r["messages"][0]["content"] for r in read_jsonl(inputs["data"] / "sft" / "train.jsonl")}
    assert set(best) <= asked
    figures = json.loads((sampled / "result.json").read_text())["metrics"]["splits"]["train"]
    curve = figures["expected_best"]
    assert len(curve) == 4
    assert curve == sorted(curve)
    assert figures["prompts"] == 32


def test_killed_and_begun_again_it_makes_the_same_bytes(
    tmp_path: Path, sampled: Path, inputs: dict[str, Path]
) -> None:
    work = tmp_path / "w"
    job = write_job("sample", work, inputs, sample=SETTINGS)
    process = start(job)
    deadline = time.monotonic() + 200
    while not (work / "state" / "train-00001.jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    done = {path.name: path.stat().st_mtime_ns for path in (work / "state").glob("*.jsonl")}
    assert not (work / "result.json").exists()
    again = start(job)
    output, _ = again.communicate(timeout=200)
    assert again.returncode == 0, output
    for name, written in done.items():
        assert (work / "state" / name).stat().st_mtime_ns == written  # not made a second time
    files = sorted(path.relative_to(sampled) for path in (sampled / "output").rglob("*.json*"))
    assert len(files) == 7
    for file in files:
        assert (work / file).read_bytes() == (sampled / file).read_bytes()


def test_alignment_takes_its_pairs_from_sampling(
    tmp_path: Path, run_stage: Callable[..., Path], sampled: Path, inputs: dict[str, Path]
) -> None:
    given = {name: inputs[name] for name in ("data", "pretrain", "train")} | {"pairs": sampled / "output"}
    settings = {"pairs": "sample", "loss": "rpo_backward_kl", "max_steps": 4, "exact_kl": False}
    work = run_stage("align", tmp_path / "w", given, align=settings)
    metrics = json.loads((work / "result.json").read_text())["metrics"]
    assert metrics["data"]["train"]["pairs"] == len(
        read_jsonl(sampled / "output" / "preference" / "train.jsonl")
    )
    assert "sampled_accuracy" in metrics["held_out"]


def test_a_rule_can_score(tmp_path: Path, inputs: dict[str, Path]) -> None:
    from pipeline.stages.house_style import check

    given = {name: inputs[name] for name in ("data", "pretrain", "train")}
    settings = {**SETTINGS, "max_prompts": 12, "scorer": "house-style", "prompts": "preferences"}
    sample.run(load_step(write_job("sample", tmp_path / "w", given, sample=settings)))
    pairs = read_jsonl(tmp_path / "w" / "output" / "preference" / "train.jsonl")
    assert pairs
    for pair in pairs:
        assert pair["score_chosen"] == -len(check(pair["chosen"]))
        assert pair["score_rejected"] == -len(check(pair["rejected"]))
