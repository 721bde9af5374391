"""Settings of training that cannot go together are refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.toolchains import ROOT


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("train.parallel.tensor=2", "train.parallel.tensor: needs train.parallel.strategy=fsdp2"),
        ("train.parallel.sequence=true", "needs train.parallel.tensor above 1"),
        (
            "train.parallel.strategy=fsdp2 train.parallel.context=2 train.packing=true",
            "train.packing: does not go with train.parallel.context above 1",
        ),
        ("align.parallel.strategy=fsdp2 align.parallel.context=2", "preference losses need whole answers"),
        ("train.peft=qlora train.precision=fp32", "train.precision: fp32 does not go with qlora"),
        ("align.loss=orpo", "orpo holds the loss on the chosen answers already"),
        ("align.loss=dpoo", "align.loss"),
        (
            "align.loss=ipo align.label_smoothing=0.1",
            "align.label_smoothing: is a setting of dpo; align.loss is ipo",
        ),
        ("align.gamma=1", "align.gamma: is a setting of simpo"),
        ("train.engine=nemo train.answers=all train.micro_batch_size=1", "'all' is for the engine automodel"),
        ("tracking.mlflow=mlruns", "tracking.mlflow: 'mlruns' is not the address of a tracking server"),
        (
            "tracking.mlflow=https://me:secret@host",
            "tracking.mlflow: has a user name or password in an address",
        ),
        (
            "align.engine=aligner align.precision=bf16-weights align.micro_batch_size=1",
            "is for the engine automodel",
        ),
        ("align.engine=aligner align.loss=kto align.micro_batch_size=1", "aligner goes with 'dpo'"),
    ],
)
def test_what_cannot_go_together_is_refused(settings: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        recipe.load("llama-tiny", ROOT, settings, "local")
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("llama-tiny", "train.lora.rank=4", "train.lora.rank: would change nothing: it is for adapters"),
        ("llama-tiny", "train.peft=none align.lora.lr=0.1", "align.lora.lr: would change nothing"),
        (
            "llama-8b",
            "train.peft=lora train.lr=1e-3",
            "train.lr: would change nothing: it is for all weights: adapters are",
        ),
        ("llama-8b", "align.peft=lora align.exact_kl=false", "align.exact_kl: would change nothing"),
        ("llama-8b", "train.peft=lora train.save_precision=bf16", "adapters are published in fp32"),
        (
            "llama-8b",
            "pretrain.lr=1e-3",
            "pretrain.lr: would change nothing: it is not done where the model comes from",
        ),
        ("llama-8b", "model.layers=3", "model.layers: would change nothing: it is read off the base model"),
        ("llama-tiny", "model.chat_template=llama3", "model.chat_template: would change nothing"),
        ("llama-tiny", "export.serving.max_batch_size=2", "it is for GPU targets, and cpu-openvino serves"),
        ("llama-tiny", "export.gpu=H100", "export.gpu: would change nothing"),
        (
            "llama-tiny",
            "export.calibration_samples=8",
            "it is for weights that are fitted to texts, and fp32 is not",
        ),
        ("llama-8b", "export.kv_cache_gb=2", "it is for cpu-openvino, and trtllm serves"),
        (
            "llama-tiny",
            "train.nemo.gpus=4",
            "train.nemo.gpus: would change nothing: it is for the engines nemo",
        ),
        ("llama-tiny", "train.best_every=5 train.validate_every=9", "gives way to train.best_every = 5"),
        ("llama-tiny", "train.schedule=constant train.min_lr_share=0.5", "a constant one does not fall"),
        (
            "llama-tiny",
            "align.loss=simpo align.reference=live",
            "is for losses with a reference policy: dpo, ipo",
        ),
        ("llama-8b", "train.engine=nemo train.packing=true", "is for the engine automodel, and nemo trains"),
    ],
)
def test_what_would_change_nothing_is_refused(name: str, settings: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        recipe.load(name, ROOT, settings, "local")
    assert str(refused.value).startswith("SET: ")
    assert said in str(refused.value)


def test_a_recipes_own_lines_are_held_to_it_and_what_it_draws_on_is_not(tmp_path: Path) -> None:
    """Files under configs/ hold values for several ways to train; so does a recipe whose switch ``SET`` turns."""
    mine = tmp_path / "mine.yaml"
    mine.write_text("use: {train: llama}\ntrain:\n  lora: {rank: 4}\n")
    with pytest.raises(UserError, match=r"mine.yaml:3: train.lora.rank: would change nothing"):
        recipe.load(str(mine), ROOT, "'curate.sources=[{kind: text, path: x}]'")
    mine.write_text("use: {train: llama}\ntrain:\n  peft: lora\n  lora: {rank: 4}\n")
    source = "'curate.sources=[{kind: text, path: x}]'"
    recipe.load(str(mine), ROOT, source)
    recipe.load(str(mine), ROOT, f"{source} train.peft=none")
    for name in recipe.recipe_names(ROOT):
        loaded = recipe.load(name, ROOT)
        whole = tmp_path / f"{name}.yaml"
        pinned = {recipe.SUBMITTED: True, **dataclasses.asdict(loaded.settings)}  # as a submission does
        whole.write_text(yaml.safe_dump(pinned))
        recipe.load(str(whole), ROOT)


def test_what_goes_together_is_taken() -> None:
    recipe.load("llama-tiny", ROOT, "align.loss=orpo align.sft_weight=0 train.peft=dora", "local")
