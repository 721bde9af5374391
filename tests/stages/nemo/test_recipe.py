"""A recipe's settings on nemo-toolkit's own recipes: every field lands, and a name it lacks is refused."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.engines.nemo import data as forms
from pipeline.engines.nemo import recipe, submit
from pipeline.engines.nemo.fields import assign, fields_of
from pipeline.engines.nemo.recipe import Places
from pipeline.schema import Lora, Nemo, Pretrain, Train
from pipeline.stages.step import InputError, read_jsonl

SETTINGS = Train(
    engine="nemo",
    max_steps=300,
    global_batch_size=64,
    micro_batch_size=2,
    lr=2e-5,
    warmup_steps=30,
    nemo=Nemo(gpus=8, tensor=2, pipeline=2, context=2, sequence_parallel=True),
)


@pytest.fixture
def places(model: Path, data: Path, tmp_path: Path) -> Places:
    return Places(model, tmp_path / "start", tmp_path / "data", data / "tokenizer", tmp_path / "logs")


def test_every_setting_lands_in_its_field(places: Places) -> None:
    tree = recipe.build("train", SETTINGS, 128, places)
    assert recipe.check(tree) == [
        *(
            "LlamaModel",
            "FineTuningDataModule",
            "MegatronOptimizerModule",
            "NeMoLogger",
            "AutoResume",
            "Trainer",
        ),
    ]
    strategy, optimiser, schedule = tree.trainer.strategy, tree.optim.config, tree.optim.lr_scheduler
    assert (strategy.tensor_model_parallel_size, strategy.pipeline_model_parallel_size) == (2, 2)
    assert (strategy.context_parallel_size, strategy.sequence_parallel) == (2, True)
    assert (tree.trainer.max_steps, tree.trainer.devices, tree.trainer.num_nodes) == (300, 8, 1)
    assert (optimiser.lr, optimiser.weight_decay, optimiser.adam_beta2, optimiser.clip_grad) == (
        *(2e-5, 0.01, 0.95, 1.0),
    )
    assert (schedule.warmup_steps, schedule.max_steps, schedule.min_lr) == (30, 300, pytest.approx(2e-6))
    assert (tree.data.global_batch_size, tree.data.micro_batch_size, tree.data.seq_length) == (64, 2, 128)
    assert tree.resume.restore_config.path == str(places.start)
    config = tree.model.config
    assert (config.num_layers, config.hidden_size, config.num_query_groups, config.seq_length) == (
        2,
        32,
        2,
        128,
    )
    assert not hasattr(tree, "peft") or tree.peft is None


def test_full_precision(places: Places) -> None:
    tree = recipe.build("train", dataclasses.replace(SETTINGS, precision="fp32"), 128, places)
    assert tree.trainer.plugins.params_dtype == torch.float32
    assert not tree.optim.config.bf16
    recipe.check(tree)


def test_adapters_are_for_whole_layers(places: Places) -> None:
    def build(lora: Lora) -> Any:
        return recipe.build("train", dataclasses.replace(SETTINGS, peft="lora", lora=lora), 128, places)

    tree = build(Lora(rank=4, alpha=8, dropout=0.1, targets=["*_proj"]))
    assert "LoRA" in recipe.check(tree)
    assert tree.peft.target_modules == list(recipe.LORA_LAYERS)
    assert (tree.peft.dim, tree.peft.alpha, tree.peft.dropout) == (4, 8, 0.1)
    assert build(Lora(targets=["gate_proj", "up_proj"])).peft.target_modules == ["linear_fc1"]
    with pytest.raises(InputError, match=r"train\.lora\.targets: query names no linear layer"):
        build(Lora(targets=["query"]))
    with pytest.raises(InputError, match=r"holds q_proj, k_proj, v_proj in one layer, .*\(named: q_proj\)"):
        build(Lora(targets=["q_proj"]))


def test_pretraining_begins_at_random(places: Places) -> None:
    settings = Pretrain(engine="nemo", max_steps=50, nemo=Nemo(gpus=1))
    tree = recipe.build("pretrain", settings, 128, dataclasses.replace(places, start=None))
    assert tree.resume.restore_config is None
    assert tree.data.paths["train"] == [str(places.data / "train")]
    assert tree.__fn_or_cls__.__name__ == "pretrain"


@pytest.mark.parametrize("name", ["llama32_1b", "llama31_8b", "llama31_70b", "llama31_405b"])
def test_nemos_recipes_take_every_field(name: str, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "SHAPE", ())  # the preset's own model, of which no weights are here
    for settings in (
        dataclasses.replace(SETTINGS, nemo=dataclasses.replace(SETTINGS.nemo, recipe=name)),
        dataclasses.replace(SETTINGS, peft="lora", nemo=dataclasses.replace(SETTINGS.nemo, recipe=name)),
    ):
        tree = recipe.build("train", settings, 4096, places)
        assert tree.model.config.seq_length == 4096
        assert tree.optim.config.lr == 2e-5
    pretrain = Pretrain(engine="nemo", micro_batch_size=1, nemo=Nemo(recipe=name, gpus=4, tensor=2))
    assert recipe.build("pretrain", pretrain, 8192, places).trainer.strategy.tensor_model_parallel_size == 2


def test_what_does_not_work_out_is_refused_by_name(places: Places) -> None:
    def build(**nemo: Any) -> None:
        recipe.build("train", dataclasses.replace(SETTINGS, nemo=Nemo(**nemo)), 128, places)

    with pytest.raises(
        InputError, match=r"has no llm\.llama31_8\.finetune_recipe; did you mean .*llama31_8b"
    ):
        build(recipe="llama31_8")
    with pytest.raises(
        InputError, match=r"llama32_1b is for another model than .*num_layers is 16, the model's 2"
    ):
        build(recipe="llama32_1b")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("optim.config.learning_rate", "OptimizerConfig has no field 'learning_rate'"),
        # These constructors take **kwargs, so fiddle itself would have let them pass.
        ("trainer.strategy.tensor_paralel_size", "MegatronStrategy has no field 'tensor_paralel_size'"),
        ("log.ckpt.every_n_train_step", "did you mean 'every_n_train_steps'"),
        ("optim.schedule.warmup", "nothing to configure at optim.schedule"),
    ],
)
def test_a_field_the_package_does_not_know_fails(path: str, words: str, places: Places) -> None:
    tree = recipe.build("train", SETTINGS, 128, places)
    with pytest.raises(InputError, match=words):
        assign(tree, path, 1)


def test_a_value_the_package_refuses_is_told_with_its_part(places: Places) -> None:
    tree = recipe.build("train", SETTINGS, 128, places)
    tree.trainer.strategy.ddp = "no such"
    with pytest.raises(
        InputError, match=r"nemo-toolkit refuses the recipe's trainer: Invalid DDP type: no such$"
    ):
        recipe.check(tree)


def test_names_of_bases_count_where_the_rest_is_open() -> None:
    class Base:
        def __init__(self, one: int) -> None: ...

    class Open(Base):
        def __init__(self, two: int, **rest: Any) -> None: ...

    assert fields_of(Open) == {"one", "two"}


def test_nemos_data_set_gives_our_tokens_and_labels(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    from nemo.collections.common.tokenizers.huggingface.auto_tokenizer import AutoTokenizer
    from nemo.collections.llm.gpt.data.core import create_sft_dataset

    from pipeline.engines.automodel import examples, tokenise

    counts = forms.write_chats(data, tokenizer, 128, tmp_path)
    records = read_jsonl(data / "sft" / "train.jsonl")
    ours, kept = tokenise.instruction_examples(tokenizer, records, 128)
    assert {**counts["train"], "cut_prompts": 0} == {**kept, "read_otherwise": 0}
    assert kept["too_long"] == 1
    theirs = create_sft_dataset(
        tmp_path / "training.jsonl",
        tokenizer=AutoTokenizer(str(data / "tokenizer")),
        seq_length=128,
        prompt_template=forms.TEMPLATE,
        memmap_workers=1,
    )
    assert len(theirs) == len(ours)
    for place in range(len(ours)):
        batch = theirs.collate_fn([theirs[place]])
        start, end = int(ours.offsets[place]), int(ours.offsets[place + 1])
        length = end - start
        assert batch["tokens"][0, :length].tolist() == ours.inputs[start:end].tolist()
        wanted = ours.labels[start:end]
        assert (batch["loss_mask"][0, :length] > 0).tolist() == (wanted != examples.IGNORED).tolist()
        answered = wanted != examples.IGNORED
        assert batch["labels"][0, :length][answered].tolist() == wanted[answered].tolist()
        assert not batch["loss_mask"][0, length:].any()


def test_documents_are_megatrons_indexed_data_set(data: Path, tokenizer: Any, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    counts = forms.write_documents(data, tokenizer, tmp_path)
    stored = IndexedDataset(str(tmp_path / "train"))
    texts = [record["text"] for record in read_jsonl(data / "pretrain" / "train" / "00.jsonl")]
    assert len(stored) == len(texts)
    assert counts["train"] == sum(map(len, stored))
    for ids, text in zip(stored, texts, strict=True):
        assert ids[-1] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[:-1]) == text


def test_the_written_recipe_is_read_back_the_same(places: Places, tmp_path: Path) -> None:
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    tree = recipe.build("train", SETTINGS, 128, places)
    submit.write(tree, "train", 1, 8, tmp_path / "submission")
    assert ZlibJSONSerializer().deserialize((tmp_path / "submission" / submit.RECIPE).read_text()) == tree
    readable = (tmp_path / "submission" / submit.READABLE).read_text()
    assert "lr: 2.0e-05" in readable
    assert "tensor_model_parallel_size: 2" in readable
    script = (tmp_path / "submission" / submit.COMMAND).read_text()
    assert f"--nproc-per-node 8 --tee 3 -m {submit.RUNNER} -n train {tmp_path}/submission" in script
    submit.write(tree, "train", 4, 8, tmp_path / "submission")
    assert '--rdzv-endpoint "$HEAD_NODE:29500"' in (tmp_path / "submission" / submit.COMMAND).read_text()


def test_nemo_run_starts_what_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real submission, processes under torchrun; what they run needs no GPU."""
    import nemo_run

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    make = nemo_run.Partial(os.makedirs, str(tmp_path / "made"), exist_ok=True)
    assert submit.train(make, "train", 2)
    assert (tmp_path / "made").is_dir()
    assert not submit.train(nemo_run.Partial(os.makedirs, str(tmp_path / "made")), "train", 1)
