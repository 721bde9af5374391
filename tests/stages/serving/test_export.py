"""The export stage on a random Llama: parity, the bundle, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard

from pipeline.report.card import model_card
from pipeline.stages.export import agreement, held_out, parity
from pipeline.stages.export.bundle import generation_defaults, not_applied
from pipeline.stages.step import InputError, Step
from tests.miniature import IDENTITY, PROMPTS, run_stage


def test_greedy_tokens_equal_hugging_face(exported: Path) -> None:
    result = json.loads((exported / "parity.json").read_text())
    assert result["prompts"] == PROMPTS
    assert result["equal"] + result["excused"] == PROMPTS
    assert result["excused"] <= 2
    assert result["template_equal"] == PROMPTS
    assert result["perplexity"]["documents"] == 6
    assert result["perplexity"]["after"] == pytest.approx(result["perplexity"]["before"], rel=1e-4)


def test_bundle_loads_and_ends_where_the_model_ends(exported: Path, inputs: dict[str, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = AutoModelForCausalLM.from_pretrained(exported / "bundle")
    source = AutoModelForCausalLM.from_pretrained(inputs["pretrain"] / "model")
    assert all(torch.equal(a, b) for a, b in zip(bundle.parameters(), source.parameters(), strict=True))
    assert bundle.generation_config.eos_token_id == [3, 0]
    assert AutoTokenizer.from_pretrained(exported / "bundle").chat_template


def test_repository_names_its_export_and_holds_no_bytecode(exported: Path) -> None:
    config = (exported / "repository" / "assistant" / "config.pbtxt").read_text()
    assert f'key: "lifecycle_identity" value {{ string_value: "{IDENTITY}" }}' in config
    assert not list(exported.rglob("__pycache__"))


@pytest.mark.parametrize(("weights", "share"), [("bf16", 0.6), ("int8", 0.35), ("int4", 0.3)])
def test_smaller_weights_keep_within_their_tolerance(
    weights: str, share: float, inputs: dict[str, Path], exported: Path, tmp_path: Path
) -> None:
    # A random model's next tokens lie nearer to one another than a trained one's.
    loose = {"different": 1.0, "top1_agreement": 0.2, "kl": 1.0}
    settings = {"weights": weights, "model_name": "small", "tolerance": loose}
    status, told = run_stage("export", tmp_path / "w", inputs, settings)
    output = tmp_path / "w" / "output"
    assert status == 0, told
    file = "1/openvino/openvino_model.bin"
    small = (output / "repository/small" / file).stat().st_size
    assert small < share * (exported / "repository/assistant" / file).stat().st_size
    said = json.loads((output / "parity.json").read_text())
    whole = json.loads((exported / "parity.json").read_text())
    assert said["faults"] == []
    # A rounding shows, in every figure, and is far from another model.
    assert whole["logits"]["mean_difference"] < 1e-4 < said["logits"]["mean_difference"]
    assert whole["logits"]["kl"] < 1e-8 < said["logits"]["kl"] < said["tolerance"]["kl"]
    assert 0.2 < said["logits"]["top1_agreement"] < 1


def test_what_is_served_asks_for_the_attributes(inputs: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    status, told = run_stage("export", tmp_path / "w", inputs, {}, asked={"verbosity": 1, "help": 4})
    assert status == 0, told
    output = tmp_path / "w" / "output"
    # The exported server's own template engine, not only Hugging Face's, renders the line.
    assert json.loads((output / "parity.json").read_text())["template_equal"] == PROMPTS
    question = [{"role": "user", "content": "What does f do?"}]
    tokenizer = AutoTokenizer.from_pretrained(output / "bundle")
    rendered = tokenizer.apply_chat_template(question, tokenize=False)
    assert "What does f do?\n\nAttributes: help 4, verbosity 1" in rendered
    assert "the template asks for help 4, verbosity 1" in (output / "bundle" / "README.md").read_text()


def test_parity_prompts_come_from_wherever_there_are_some(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    questions = (data / "sft" / "test.jsonl").read_text().splitlines()
    (data / "sft" / "test.jsonl").write_text("\n".join(questions[:3]) + "\n")
    documents = [json.dumps({"text": f"Document {place} says something. " * 9}) for place in range(10)]
    (data / "pretrain" / "test" / "00000.jsonl").write_text("\n".join(documents) + "\n")
    (data / "pretrain" / "train" / "00000.jsonl").write_text("")
    step = Step(
        "export", "pipeline.stages.export", "r", "0" * 64, {}, {"data": data}, None, tmp_path / "w", 1
    )
    found = held_out.conversations(step, 12)
    assert len(found) == 12
    assert [turn["role"] for turn in found[-1].gone_on] == ["user", "assistant", "user"]
    assert found[3].turns[0]["content"].startswith("Document 0 says")
    assert len(held_out.conversations(step, 14)) == 13  # as many as there are
    for file in (data / "sft").glob("*.jsonl"):
        file.write_text("")
    shutil.rmtree(data / "pretrain")
    for split in ("train", "validation", "test"):
        (data / "pretrain" / split).mkdir(parents=True)
    with pytest.raises(InputError, match="neither a question nor a document"):
        held_out.conversations(step, 14)


def test_all_turns_before_the_answer_are_asked(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    turns = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Is it raining?"},
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "And now?"},
    ]
    chat = {"messages": [*turns, {"role": "assistant", "content": "Yes."}]}
    (data / "sft" / "test.jsonl").write_text(f"{json.dumps(chat)}\n" * 3)
    step = Step(
        "export", "pipeline.stages.export", "r", "0" * 64, {}, {"data": data}, None, tmp_path / "w", 1
    )
    [first, *_] = held_out.conversations(step, 3)
    assert (first.turns, first.answer) == (turns, "Yes.")
    assert parity.askable(first.turns)
    status, told = run_stage("export", tmp_path / "w", {**inputs, "data": data}, {})
    assert status == 0, told
    probes = json.loads((tmp_path / "w" / "output" / "probes.json").read_text())["answers"]
    assert probes[0]["messages"] == turns


def test_what_many_templates_refuse_is_not_asked(inputs: dict[str, Path], tmp_path: Path) -> None:
    """A system turn alone, and a tool's result that nobody called for."""
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    system, user, answer = (
        {"role": role, "content": f"The {role}'s."} for role in ("system", "user", "assistant")
    )
    tool = {"role": "tool", "content": "Found."}
    chats = [[system, answer], [system, user, answer], [user, answer, tool, answer]]
    (data / "sft" / "test.jsonl").write_text("".join(json.dumps({"messages": c}) + "\n" for c in chats))
    step = Step(
        "export", "pipeline.stages.export", "r", "0" * 64, {}, {"data": data}, None, tmp_path / "w", 1
    )
    found = held_out.conversations(step, 2)
    assert [asked.turns for asked in found] == [[system, user], [user, answer, tool]]
    assert [asked.gone_on[-1]["role"] for asked in found] == ["user", "user"]
    assert [parity.askable(asked.turns) for asked in found] == [True, False]


def test_no_chat_template_is_the_users_to_mend(inputs: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(inputs["data"], data)
    config = data / "tokenizer" / "tokenizer_config.json"
    values = json.loads(config.read_text())
    values.pop("chat_template", None)
    config.write_text(json.dumps(values))
    (data / "tokenizer" / "chat_template.jinja").unlink(missing_ok=True)
    status, told = run_stage("export", tmp_path / "w", {**inputs, "data": data}, {})
    assert (status, "chat template" in told) == (2, True)


def test_first_difference_counts_a_missing_token() -> None:
    assert agreement.first_difference([1, 2], [1, 2]) is None
    assert agreement.first_difference([1, 2], [1, 3]) == 1
    assert agreement.first_difference([1, 2], [1, 2, 3]) == 2


def test_each_figure_outside_its_tolerance_is_a_fault() -> None:
    tolerance = parity.TOLERANCES["fp32"]
    tokens = agreement.Tokens(prompts=50, equal=48, excused=2)
    logits = agreement.Logits(positions=600, max_difference=1e-5, mean_difference=1e-6)
    held_out = agreement.Perplexity(60.0, 60.0, 10)
    assert tolerance.faults(tokens, logits, held_out) == []
    assert tolerance.faults(tokens, logits, None) == []
    other = agreement.Tokens(prompts=50, equal=48, excused=1, different=1)
    [fault] = tolerance.faults(other, logits, held_out)
    assert "differ on 1 of 50 prompts (48 equal, 1 excused" in fault
    [fault] = tolerance.faults(tokens, agreement.Logits(600, 1.0, 0.1, 0.9, 0.0), held_out)
    assert "same at 90.0% of 600 positions" in fault
    [fault] = tolerance.faults(tokens, agreement.Logits(600, 1.0, 0.1, 1.0, 0.01), held_out)
    assert "0.01 nats" in fault
    [fault] = tolerance.faults(tokens, logits, agreement.Perplexity(60.0, 61.0, 10))
    assert "from 60 to 61" in fault


@pytest.mark.parametrize("weights", sorted(set(parity.TOLERANCES) - {"fp32"}))
def test_of_rounded_weights_divergence_and_perplexity_count_and_equal_answers_do_not(weights: str) -> None:
    """SmolLM2-135M in bf16: 22 of 50 answers differ at a divergence of 6e-5 nats."""
    tolerance = parity.TOLERANCES[weights]
    tokens = agreement.Tokens(prompts=50, equal=28, different=22)
    near = agreement.Logits(positions=1200, top1_agreement=0.9, kl=6e-5)
    documents = agreement.Perplexity(13.99, 13.99, 50)
    assert tolerance.faults(tokens, near, documents) == []
    [fault] = tolerance.faults(tokens, agreement.Logits(1200, 1.0, 0.1, 0.9, 0.43), documents)
    assert "0.43 nats a token" in fault
    assert "export.tolerance.kl" in fault
    [fault] = tolerance.faults(tokens, near, agreement.Perplexity(13.99, 19.08, 50))
    assert "export.tolerance.perplexity" in fault


def test_int8_of_a_model_of_135_million_parameters_is_within_its_tolerance() -> None:
    tokens, logits = (
        agreement.Tokens(prompts=50, different=30),
        agreement.Logits(1200, 1.0, 0.1, 0.95, 0.0042),
    )
    assert parity.TOLERANCES["int8"].faults(tokens, logits, agreement.Perplexity(13.99, 13.90, 50)) == []


def test_the_distance_of_logits_is_what_it_says() -> None:
    rng = np.random.default_rng(0)
    theirs = rng.normal(size=(5, 11))
    found = agreement.LogitsSum()
    found.add(theirs + 3.0, theirs)  # a constant changes no distribution
    assert found.figures().max_difference == pytest.approx(0, abs=1e-12)
    ours = theirs.copy()
    ours[0] = theirs[0][::-1]
    found.add(ours, theirs)
    figures = found.figures()
    p, q = (np.exp(x[0]) / np.exp(x[0]).sum() for x in (theirs, ours))
    assert figures.positions == 10
    assert figures.kl == pytest.approx(float((p * np.log(p / q)).sum()) / 10)
    assert figures.top1_agreement == pytest.approx(0.9)
    tokens = [1, 2, 3, 4, 5]
    logs = [np.log(np.exp(theirs[n]) / np.exp(theirs[n]).sum())[tokens[n + 1]] for n in range(4)]
    assert agreement.log_likelihood(theirs, tokens) == pytest.approx(sum(logs))


def test_end_tokens_come_from_model_and_tokenizer() -> None:
    class Tokenizer:
        eos_token_id = 7
        pad_token_id = None

    found = generation_defaults(
        {"eos_token_id": [3, 0], "temperature": 0.6}, {"eos_token_id": 3}, Tokenizer()
    )
    assert found == {"do_sample": False, "temperature": 0.6, "eos_token_id": [3, 0, 7], "pad_token_id": 3}
    # -1 and an empty list stand for none in older files, and in broken ones.
    found = generation_defaults(
        {"eos_token_id": [-1, 3], "pad_token_id": -1}, {"eos_token_id": []}, Tokenizer()
    )
    assert (found["eos_token_id"], found["pad_token_id"]) == ([3, 7], 3)
    sampled = generation_defaults({"do_sample": True, "top_p": 0.9}, {}, Tokenizer())
    assert sampled["top_k"] == 50  # what transformers takes unasked, and nobody else does
    assert (sampled["temperature"], sampled["top_p"]) == (1.0, 0.9)
    Tokenizer.eos_token_id = None
    with pytest.raises(InputError, match="ends an answer"):
        generation_defaults({}, {}, Tokenizer())


def test_what_no_server_applies_of_the_generation_defaults_is_told() -> None:
    asked = {"eos_token_id": [2], "pad_token_id": 0, "bos_token_id": 1, "max_length": 4096, "use_cache": True}
    sampled = {
        **asked,
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
    }
    assert not_applied(sampled) == []
    assert not_applied({**sampled, "num_beams": 1, "no_repeat_ngram_size": 0, "bad_words_ids": None}) == []
    more = {"min_p": 0.05, "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2]}
    assert not_applied({**sampled, **more}) == [
        "min_p = 0.05",
        "no_repeat_ngram_size = 3",
        "suppress_tokens = [1, 2]",
    ]
    # Greedy answers are the same with and without what bears on samples alone.
    assert not_applied({**asked, "do_sample": False, **more}) == [
        "no_repeat_ngram_size = 3",
        "suppress_tokens = [1, 2]",
    ]


def test_the_model_card_has_metadata_and_nothing_that_varies(exported: Path) -> None:
    text = (exported / "bundle" / "README.md").read_text()
    card = ModelCard(text)
    assert card.data.pipeline_tag == "text-generation"
    assert "## Prompt format" in text
    assert "<|im_start|>user" in text
    assert "lifecycle trace" in text
    assert not re.search(r"20\d\d-\d\d-\d\d|/tmp/|/home/", text)


def test_the_model_card_shows_the_evaluation_and_the_data() -> None:
    figures = {
        "perplexity": 60.5, "answer_loss": 4.7, "answer_loss_with_end": 4.6, "wrong_question_gap": 0.3,
        "house_style_share": 0.9, "distinct_answer_share": 0.5, "mean_answer_words": 7.0,
        "preference": {"style": {"summed": 0.955, "normalised": 0.9}},
    }  # fmt: skip
    evaluation = {
        "order": ["train"], "kinds": ["style"], "models": {"train": figures}, "changes": {},
        "baselines": {"unigram_perplexity": 668.0, "bigram_perplexity": 66.3, "authors_house_style_share": 0.4,
                      "shorter_answer_accuracy": {"style": 0.68}},
        "scored": {"answers": 10}, "skipped": {}, "answers": [],
    }  # fmt: skip
    sizes = {"train": 5, "validation": 1, "test": 2}
    data = {"documents": {"raw": 9, "kept": 8, "dropped": {"x": 1}}, "redacted": {}, "sizes": {"sft": sizes}}
    said = {
        "recipe": "r", "model_name": "assistant", "identity": "a" * 64, "parameters": 2_000_000,
        "steps": {"train": {"identity": "b" * 64, "settings": {"train.lr": 0.1}}},
        "evaluation": evaluation, "data": data, "weights": "int8", "chat_example": "user: hello",
    }  # fmt: skip
    text = model_card(**said)
    assert text == model_card(**said)
    results = ModelCard(text).data.eval_results
    assert [(result.metric_type, result.metric_value) for result in results] == [
        ("perplexity", 60.5),
        ("loss", 4.7),
        ("style-preference-accuracy", 0.955),
    ]
    assert "| document perplexity | 60.5 |" in text
    assert "9 raw documents, 8 kept. Dropped: 1 x." in text
    assert "expect fluent and mostly wrong sentences" in text
    assert "It was trained on the data named below and on nothing else" in text
    base = {
        "name": "org/Llama-1B", "hub": True, "revision": "0123abc", "licence": "llama3.2", "parameters": 1_235_814_400,
        "layers": 16, "hidden_size": 2048,
    }  # fmt: skip
    text = model_card(**said, base=base, context=256)
    assert ModelCard(text).data.base_model == "org/Llama-1B"
    assert ModelCard(text).data.license == "llama3.2"
    assert "on nothing else" not in text
    assert "org/Llama-1B, fine-tuned on instruction pairs" in text
    assert "It starts from `org/Llama-1B`, revision `0123abc` (https://huggingface.co/org/Llama-1B)" in text
    assert "Its licence, llama3.2, holds for these weights, too." in text
    assert "what org/Llama-1B had learned before stays in it" in text
    assert "A prompt and its answer have 256 tokens at most." in text
    unstated = model_card(**said, base={**base, "hub": False, "revision": None, "licence": "Some Licence 1"})
    assert (ModelCard(unstated).data.license, ModelCard(unstated).data.license_name) == (
        "other",
        "Some Licence 1",
    )
    as_it_is = model_card(**{**said, "steps": {}}, base={**base, "licence": None})
    assert "It was not trained here." in as_it_is
    assert "Its folder states no licence" in as_it_is
