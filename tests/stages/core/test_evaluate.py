"""Evaluation: exact figures on tiny models against slow, obvious computations."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import events, start, write_job
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline import schema
from pipeline.engines.automodel.examples import Examples
from pipeline.engines.automodel.tokenise import instruction_examples, prompt_ids
from pipeline.runner.gate import judge
from pipeline.stages.evaluate.answers import greedy_answers
from pipeline.stages.evaluate.figures import change, gate_figures, model_figures
from pipeline.stages.evaluate.held_out import swap_questions
from pipeline.stages.evaluate.intervals import mean_interval, ratio_interval
from pipeline.stages.evaluate.measure import wins
from pipeline.stages.evaluate.ngram import Bigram, Unigram
from pipeline.stages.evaluate.scoring import label_losses
from pipeline.stages.perplexity import perplexity

QUESTIONS = ["What does f do?", "What is the class networkx.Graph for, if anything at all?", "Why?"]


@pytest.fixture(scope="module")
def tokenizer(curated: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def chat(question: str, answer: str) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_losses_equal_one_sequence_at_a_time(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    records = [chat(question, "Return it." * (n + 1)) for n, question in enumerate(QUESTIONS)]
    examples, _ = instruction_examples(tokenizer, records, 256)
    found = label_losses(model, examples, 2, lambda *_: None)
    for record, losses in zip(records, found, strict=True):
        prompt = prompt_ids(tokenizer, record["messages"][:-1])
        answer = [*tokenizer(record["messages"][1]["content"], add_special_tokens=False)["input_ids"], 3]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + answer])).logits[0]
        slow = [-logits[len(prompt) - 1 + i].log_softmax(0)[token].item() for i, token in enumerate(answer)]
        np.testing.assert_allclose(losses, slow, rtol=1e-4, atol=1e-4)


def asked(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def test_batched_greedy_answers_equal_single_ones(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    together = greedy_answers(model, tokenizer, [asked(q) for q in QUESTIONS], 12, 8, lambda *_: None)
    for question, answer in zip(QUESTIONS, together, strict=True):
        tokens = prompt_ids(tokenizer, asked(question))
        start = len(tokens)
        with torch.no_grad():
            while len(tokens) < start + 12 and (len(tokens) == start or tokens[-1] not in (0, 3)):
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        kept = [token for token in tokens[start:] if token not in (0, 3)]
        assert answer == tokenizer.decode(kept, skip_special_tokens=True).strip()


def test_ngram_models_are_probability_distributions() -> None:
    rng = np.random.default_rng(0)
    inputs, labels = rng.integers(0, 30, 2000), rng.integers(0, 29, 2000)
    bigram = Bigram(inputs, labels, 30)
    for context in (0, 7, 29):
        total = bigram.probabilities(np.full(30, context), np.arange(30)).sum()
        assert total == pytest.approx(1.0)
    unigram = Unigram(labels, 30)
    assert np.exp(unigram.log_probabilities).sum() == pytest.approx(1.0)


def test_bigram_equals_a_slow_kneser_ney() -> None:
    text = [int(c) for c in "0120312041230102"]
    inputs, labels = np.array(text[:-1]), np.array(text[1:])
    bigram = Bigram(inputs, labels, 5)
    pairs = Counter(zip(inputs.tolist(), labels.tolist(), strict=True))
    d = bigram.discount
    follows = {w: len({a for a, b in pairs if b == w}) for w in range(5)}
    lower = {w: max(follows[w] - d, 0) / len(pairs) for w in range(5)}
    rest = 1 - sum(lower.values())
    for a in range(5):
        total = sum(n for (x, _), n in pairs.items() if x == a)
        types = sum(1 for (x, _) in pairs if x == a)
        for b in range(5):
            p = max(pairs[a, b] - d, 0) / total + d * types / total * (lower[b] + rest / 5)
            assert bigram.probabilities(np.array([a]), np.array([b]))[0] == pytest.approx(p)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        sample = rng.normal(0.3, 1.0, 80)
        _, low, high = mean_interval(sample, 400)
        hits += low <= 0.3 <= high
    assert 175 <= hits <= 199
    assert ratio_interval([2.0, 4.0], [1.0, 3.0], 50)[0] == pytest.approx(1.5)
    assert all(math.isnan(x) for x in mean_interval([], 100))


def test_wins_and_swaps() -> None:
    scores = {
        "chosen": [-4.0, -9.0, -1.0],
        "rejected": [-5.0, -8.0, -1.0],
        "chosen_tokens": [2, 3, 1],
        "rejected_tokens": [5, 1, 1],
    }
    assert wins(scores, False).tolist() == [1.0, 0.0, 0.5]
    assert wins(scores, True).tolist() == [0.0, 1.0, 0.5]
    swapped = swap_questions([chat(f"q{i}", f"a{i}") for i in range(5)])
    assert all(
        s["messages"][0]["content"] != f"q{i}" and s["messages"][1]["content"] == f"a{i}"
        for i, s in enumerate(swapped)
    )
    assert len(Examples.of([])) == 0


def test_empty_test_data_is_named_and_breaks_nothing(
    tmp_path: Path, curated: Path, run_stage: Callable[..., Path]
) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(curated, data)
    for file in ("sft/test.jsonl", "preference/test.jsonl", "pretrain/test/00000.jsonl"):
        (data / file).write_text("")
    pretrained = run_stage("pretrain", tmp_path / "pretrain", {"data": curated}, pretrain={"max_steps": 3})
    work = run_stage("evaluate", tmp_path / "w", {"data": data, "pretrain": pretrained / "output"})
    report = json.loads((work / "output" / "evaluation.json").read_text())
    assert report["models"]["pretrain"]["perplexity"] is None
    assert report["gate"] == {"model": "pretrain", "parent": None}
    assert "no test data" in (work / "output" / "evaluation.md").read_text()


def test_a_model_whose_scores_are_no_numbers_is_not_evaluated(
    tmp_path: Path, curated: Path, pretrained: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(pretrained, tmp_path / "broken")
    file = tmp_path / "broken" / "model" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] = math.nan
    file.chmod(0o644)
    save_file(weights, file, metadata={"format": "pt"})
    inputs = {"data": curated, "pretrain": tmp_path / "broken"}
    process = start(write_job("evaluate", tmp_path / "w", inputs))
    process.communicate(timeout=200)
    assert process.returncode == 2
    told = events(tmp_path / "w", "error")[0]["text"]
    assert "pretrain gives held-out data scores that are not finite (documents.loss.0 = nan)" in told
    assert not (tmp_path / "w" / "result.json").exists()


def test_the_gates_figures_are_of_every_kind_of_pairs_with_their_number() -> None:
    def scores(better: float, count: int) -> dict:
        pairs = {"rejected": [-2.0] * count, "chosen_tokens": [2] * count, "rejected_tokens": [2] * count}
        content = [4.0 - better] * count
        answers = {"content": content, "end": [1.0] * count, "tokens": [2] * count, "swapped": [5.0] * count}
        return {
            "documents": {"loss": [1.0], "tokens": [1]},
            "answers": answers,
            "preferences": {"given": {"chosen": [-2.5 + better] * count, **pairs}},
            "generated": ["Return it."],
        }

    before, after = scores(0.0, 24), scores(1.0, 24)
    models = {"train": model_figures(before, 100), "align": model_figures(after, 100)}
    changes = {"align": change(before, after, 100)}
    found = gate_figures(["train", "align"], models, changes, ["given"], 200)
    assert found["kinds"] == {"given": {"pairs": 24, "change": 1.0, "change_ci": [1.0, 1.0]}}
    assert found["aligned_on"] == ["given"]
    assert found["answers"] == 24
    assert found["answer_loss_change"] == pytest.approx(-0.25)
    assert found["answer_loss_change_ci"] == pytest.approx([-0.25, -0.25])
    assert judge({"gate": found}, schema.Gate()).passed
    assert not judge({"gate": found}, schema.Gate(min_pairs=25)).passed


def test_a_loss_beyond_all_sense_has_a_perplexity() -> None:
    assert perplexity(0.0) == 1.0
    assert math.isfinite(perplexity(1e9))
