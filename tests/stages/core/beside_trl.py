"""Training runs on both sides: TRL's trainers, and the engine's parts in a plain loop.

Both train a tiny random Llama on the same token ids in the same order with the same AdamW and
clipping, in float32.  ``test_trl.py`` compares what comes out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.engines.automodel.examples import IGNORED, Examples, OrderedExamples, collate
from pipeline.engines.automodel.preference_losses import (
    PreferenceBatch,
    mismatched_kl,
    preference_loss,
    sequence_log_probabilities,
)
from pipeline.engines.automodel.recipe import NextTokenRecipe
from pipeline.engines.automodel.tokenise import answer_example

VOCABULARY, END, PADDING = 300, 0, 1
STEPS, PAIRS = 5, 4  # optimiser steps; pairs (or answers, where there are none) of a step
ADAMW = {"lr": 2e-3, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.01}
CLIP = 1.0

Ids = list[int]
Pair = tuple[Ids, Ids, Ids]  # prompt, chosen and rejected answer, both with their end
Loss = Callable[[Any, list[Any]], Any]
Outcome = tuple[list[float], dict[str, Any]]  # losses of the steps, gradients of the first batch


def text(ids: Ids) -> str:
    """The words of token ids, without the end, which TRL adds."""
    return " ".join(f"w{i}" for i in ids if i != END)


def pairs(prompts: tuple[int, int] = (2, 6), chosen: tuple[int, int] = (2, 9)) -> list[Pair]:
    """Random (prompt, chosen, rejected) with lengths from the ranges, one for each pair of a run."""
    chance = random.Random(0)

    def ids(low: int, high: int) -> Ids:
        return [chance.randrange(2, VOCABULARY) for _ in range(chance.randint(low, high))]

    return [(ids(*prompts), [*ids(*chosen), END], [*ids(2, 9), END]) for _ in range(STEPS * PAIRS)]


def llama(seed: int) -> Any:
    """A random Llama: 2 layers, width 32; wide enough initial weights for losses away from log 2."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"eos_token_id": END, "pad_token_id": PADDING, "bos_token_id": None}
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            num_key_value_heads=2,
            initializer_range=0.2,
            tie_word_embeddings=False,
            **shape,
            **special,
        )
    )


# ------------------------------------------------------------------------------------ our side


def engine(model: Any) -> NextTokenRecipe:
    """The engine's forward pass over a model, on one process, without AutoModel's set-up."""
    recipe = object.__new__(NextTokenRecipe)
    alone = SimpleNamespace(device=None, world_size=1)
    recipe.__dict__.update(dist_env=alone, model_parts=[model], _bf16=False)
    return recipe


def sides(data: list[Pair]) -> list[tuple[Ids, Ids]]:
    """The sequences of pairs: chosen and rejected in turn."""
    return [(prompt, answer) for prompt, *answers in data for answer in answers]


def batches(sequences: list[tuple[Ids, Ids]], group: int, folder: Path) -> list[dict[str, Any]]:
    """The engine's batches of (prompt, answer) sequences, ``group`` to an item, in their order."""
    stored = Examples.of([answer_example(prompt, answer) for prompt, answer in sequences], group)
    stored.save(folder / "examples.safetensors", list(range(len(stored))))
    examples = OrderedExamples(str(folder / "examples.safetensors"), group)
    return [collate([examples[i + j] for j in range(PAIRS)]) for i in range(0, len(examples), PAIRS)]


def scores(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Summed log-probabilities and token counts of a batch's answers, each ``[sequences]``."""
    logits, labels = engine(model).labelled_logits(batch)
    rows = (batch["labels"] != IGNORED).nonzero()[:, 0]
    count = len(batch["labels"])
    return sequence_log_probabilities(logits, labels, rows, count), torch.bincount(rows, minlength=count)


def estimated_kl(model: Any, reference: Any, mismatched: dict[str, Any]) -> Any:
    return mismatched_kl(reference_scores(model, mismatched), reference_scores(reference, mismatched))


def reference_scores(model: Any, batch: dict[str, Any]) -> Any:
    with torch.no_grad():
        return scores(model, batch)[0]


def pair_loss(name: str, reference: Any = None, **parameters: Any) -> Loss:
    """Mean loss of a step's pairs (its first batch); the KL is from its second, where there is one."""

    def loss(model: Any, batch: list[dict[str, Any]]) -> Any:
        (policy, tokens), fields = scores(model, batch[0]), {}
        if reference is not None:
            fixed = reference_scores(reference, batch[0])
            fields = {"reference_chosen": fixed[0::2], "reference_rejected": fixed[1::2]}
        if len(batch) > 1:
            fields["kl"] = estimated_kl(model, reference, batch[1])
        given = PreferenceBatch(
            policy[0::2], policy[1::2], chosen_tokens=tokens[0::2], rejected_tokens=tokens[1::2], **fields
        )
        return preference_loss(name, given, **parameters).losses.mean()

    return loss


def sft_loss(model: Any, batch: list[dict[str, Any]]) -> Any:
    """What the recipe takes for the global batch: the sum over the labels by their number."""
    return engine(model).summed_loss(batch[0]) / (batch[0]["labels"] != IGNORED).sum()


def our_run(model: Any, loss: Loss, steps: list[list[Any]]) -> Outcome:
    """Losses of every step and gradients of the first, in a plain loop; trains ``model``."""
    optimiser = torch.optim.AdamW(model.parameters(), **ADAMW)
    losses, gradients = [], {}
    for batch in steps:
        optimiser.zero_grad()
        value = loss(model, batch)
        value.backward()
        losses.append(value.item())
        gradients = gradients or gradients_of(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimiser.step()
    return losses, gradients


def gradients_of(model: Any) -> dict[str, Any]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# ------------------------------------------------------------------------------------- TRL's side


def pair_records(data: list[Pair]) -> list[dict[str, Any]]:
    return [{"prompt": text(p), "chosen": " " + text(c), "rejected": " " + text(r)} for p, c, r in data]


def trl_run(
    trainer: type,
    config: type,
    model: Any,
    records: list[dict[str, Any]],
    tokenizer: Any,
    folder: Path,
    batch: int = PAIRS,
    **options: Any,
) -> Outcome:
    """Losses of every step and gradients of the first batch, by a TRL trainer; trains ``model``."""
    from datasets import Dataset

    own = {key: options.pop(key) for key in ("ref_model",) if key in options}
    optimiser = torch.optim.AdamW(model.parameters(), **ADAMW)
    arguments = config(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=batch,
        max_grad_norm=CLIP,
        train_sampling_strategy="sequential",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    made = trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_list(records),
        processing_class=tokenizer,
        optimizers=(optimiser, torch.optim.lr_scheduler.LambdaLR(optimiser, lambda _: 1.0)),
        **own,
    )
    model.train()
    made.compute_loss(model, next(iter(made.get_train_dataloader()))).backward()
    gradients = gradients_of(model)
    model.zero_grad()
    losses: list[float] = []
    step = made.training_step

    def recorded(*given: Any, **named: Any) -> Any:
        value = step(*given, **named)
        losses.append(value.item())
        return value

    made.training_step = recorded
    made.train()
    return losses, gradients


def agree(ours: Any, theirs: Any, our: Outcome, their: Outcome) -> None:
    """Losses, gradients and weights are the same but for float32's rounding, and training did something.

    Differences seen: losses 1e-6 of themselves, gradients 6e-7 of the largest, weights 0.002 of the learning rate.
    """
    assert len(our[0]) == len(their[0]) == STEPS
    assert len(set(our[0])) == STEPS
    assert our[0] == pytest.approx(their[0], rel=1e-5, abs=0)
    assert our[1].keys() == their[1].keys()
    largest = max(float(gradient.abs().max()) for gradient in their[1].values())
    for name, gradient in their[1].items():
        torch.testing.assert_close(
            our[1][name], gradient, rtol=0, atol=5e-6 * largest, msg=f"{name}: {{}}".format
        )
    for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=ADAMW["lr"] / 100, msg=f"{name}: {{}}".format)
