"""The comparison of an export works in batches, and finds what it would find one prompt at a time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from pipeline import schema
from pipeline.stages.export import agreement, parity
from pipeline.stages.export.reference import TOKENS_AT_ONCE, Reference, batches
from pipeline.stages.step import Step

LENGTHS = (3, 9, 9, 30, 1, 17)


@pytest.fixture(scope="module")
def reference() -> Reference:
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    return Reference(LlamaForCausalLM(shape).eval(), ends=list(range(3, 60)), pad=1)


def prompts() -> list[list[int]]:
    chance = np.random.default_rng(1)
    return [chance.integers(60, 300, length).tolist() for length in LENGTHS]


def test_batches_hold_every_sequence_once_and_no_more_than_they_may() -> None:
    sequences = [[0] * length for length in (*LENGTHS, 3 * TOKENS_AT_ONCE, *[40] * 60)]
    found = list(batches(sequences))
    assert sorted(place for some in found for place in some) == list(range(len(sequences)))
    assert found[-1] == [len(LENGTHS)]  # longer than a batch: alone
    sizes = [len(some) * max(len(sequences[place]) for place in some) for some in found[:-1]]
    assert max(sizes) <= TOKENS_AT_ONCE
    assert len(found) < 8


def test_an_answer_and_its_logits_do_not_depend_on_the_batch(reference: Reference) -> None:
    alone = [reference.greedy([prompt], 12)[0] for prompt in prompts()]
    together = reference.greedy(prompts(), 12)
    along = [prompt + answer[:-1] for prompt, (answer, _) in zip(prompts(), together, strict=True)]
    forced = reference.logits(along, [len(answer) for answer, _ in together])
    assert {len(answer) for answer, _ in together} != {12}, "some end before the others"
    for (answer, logits), (other, wide), again in zip(alone, together, forced, strict=True):
        assert answer == other
        np.testing.assert_allclose(logits, wide, atol=1e-3)
        np.testing.assert_allclose(again, wide, atol=1e-3)


def test_a_model_is_no_distance_from_itself(
    reference: Reference, inputs: dict[str, Path], tmp_path: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(inputs["pretrain"] / "model").eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(inputs["data"] / "tokenizer")
    settings: dict[str, Any] = dataclasses.asdict(
        schema.Export(parity_prompts=20, parity_tokens=6, weights="fp32", perplexity_tokens=32)
    )
    step = Step("export", "", "r", "0" * 64, {"export": settings}, inputs, None, tmp_path / "w", 1)
    step.work.mkdir(parents=True, exist_ok=True)
    itself = Reference(model, [3, 0], 1)
    found = parity.check(step, itself, tokenizer, Reference(model, [3, 0], 1))
    assert (found["prompts"], found["prompts_wanted"], found["equal"], found["faults"]) == (20, 20, 20, [])
    assert found["logits"]["kl"] < 1e-9
    assert found["perplexity"]["after"] == pytest.approx(found["perplexity"]["before"])
    # One that always goes on otherwise is found out, with the place where it left.
    other = parity.check(step, itself, tokenizer, _Otherwise(model, [3, 0], 1))
    assert other["different"] + other["excused"] == 20
    assert other["examples"][0]["at_token"] == 0


class _Otherwise(Reference):
    """Answers with another first token."""

    def answers(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return [[(answer[0] + 1) % 300, *answer[1:]] for answer in super().answers(prompts, tokens)]


def test_a_long_texts_likelihood_is_that_of_its_parts() -> None:
    chance = np.random.default_rng(0)
    logits, tokens = chance.normal(size=(150, 11)), chance.integers(0, 11, 150).tolist()
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = sum(logs[place, tokens[place + 1]] for place in range(149))
    assert agreement.log_likelihood(logits, tokens) == pytest.approx(wanted)
