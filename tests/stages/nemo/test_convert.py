"""Weights from Hugging Face to NeMo 2 and back on a CPU, and a model that computes the same in both."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.engines.nemo import convert, cpu
from pipeline.stages.step import InputError


@pytest.fixture(scope="module")
def checkpoint(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nemo") / "start"
    convert.to_nemo(model, folder)
    return folder


def test_weights_come_back_bit_for_bit(
    model: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "4")  # a conversion is one process, whatever is around it
    monkeypatch.setenv("WORLD_SIZE", "4")
    convert.to_hf(checkpoint, tmp_path / "back")
    before, after = (load_file(folder / "model.safetensors") for folder in (model, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    old, new = (json.loads((f / "config.json").read_text()) for f in (model, tmp_path / "back"))
    for name in ("hidden_size", "num_key_value_heads", "rope_theta", "tie_word_embeddings", "vocab_size"):
        assert new[name] == old[name], name


def test_the_checkpoint_is_one_that_a_cluster_with_fused_layers_reads(checkpoint: Path) -> None:
    from megatron.core import dist_checkpointing

    names = set(dist_checkpointing.load_tensors_metadata(str(checkpoint / "weights")))
    assert {name for name in names if "norm" in name} == {
        "module.decoder.final_layernorm.weight",
        "module.decoder.layers.mlp.linear_fc1.layer_norm_weight",
        "module.decoder.layers.self_attention.linear_qkv.layer_norm_weight",
    }
    written = (checkpoint / "context" / "model.yaml").read_text()
    assert "apply_rope_fusion: true" in written
    assert "persist_layer_norm: true" in written


def test_nemos_model_computes_what_hugging_faces_does(
    model: Path, checkpoint: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nemo.collections.llm.gpt.model.llama import HFLlamaExporter
    from transformers import LlamaForCausalLM

    ids = torch.tensor([tokenizer("Where do I get my badge?")["input_ids"]])
    with cpu.without_cuda(), convert.alone():
        ours, _ = HFLlamaExporter(str(checkpoint)).nemo_load(str(checkpoint))
    with torch.no_grad():
        wanted = LlamaForCausalLM.from_pretrained(model).eval()(ids).logits
    assert torch.allclose(forward(ours, ids, monkeypatch), wanted, atol=1e-5)


@pytest.fixture(scope="module")
def adapted(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A NeMo checkpoint of an adapter, as ``llm.finetune`` leaves one, and the model in memory; weights at random."""
    from lightning.pytorch.trainer.states import TrainerFn
    from nemo.collections.llm.api import _set_with_io
    from nemo.collections.llm.gpt.model.llama import HFLlamaExporter
    from nemo.collections.llm.peft.lora import LoRA
    from nemo.lightning.ckpt_utils import ckpt_to_context_subdir
    from nemo.lightning.io.pl import TrainerContext
    from nemo.lightning.pytorch.strategies.utils import create_checkpoint_io

    folder = tmp_path_factory.mktemp("adapter") / "last"
    with cpu.without_cuda(), convert.alone():
        model, trainer = HFLlamaExporter(str(checkpoint)).nemo_load(str(checkpoint))
        lora = LoRA(dim=4, alpha=8)
        model.trainer = trainer
        _set_with_io(model, "model_transform", lora)
        lora(model)
        torch.manual_seed(0)
        for name, weight in model.named_parameters():
            if ".adapter" in name:
                torch.nn.init.normal_(weight, std=0.3)
        lora.params_to_save = {name for name, weight in model.named_parameters() if weight.requires_grad}
        lora.model_ckpt_path = checkpoint
        strategy = trainer.strategy
        strategy._checkpoint_io = create_checkpoint_io(
            wrapping_ckpt_io=lora.get_wrappped_io(), save_ckpt_format="torch_dist", async_save=False
        )
        strategy.async_save = strategy.ckpt_save_optimizer = False
        trainer.state.fn = TrainerFn.FITTING
        trainer.save_checkpoint(folder)
        TrainerContext.from_trainer(trainer).io_dump(ckpt_to_context_subdir(folder), yaml_attrs=["model"])
    return folder, model


def test_an_adapter_is_pefts_and_merges_to_the_same_model(
    model: Path, adapted: tuple[Path, Any], tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlamaForCausalLM

    from pipeline.stages.models import merge_adapter

    checkpoint, nemos = adapted
    convert.to_peft(checkpoint, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], len(config["target_modules"])) == (4, 8, 7)
    merge_adapter(model, tmp_path / "adapter", tmp_path / "merged")
    ids = torch.tensor([tokenizer("Where do I get my badge?")["input_ids"]])
    found = forward(nemos, ids, monkeypatch)
    with torch.no_grad():
        wanted = LlamaForCausalLM.from_pretrained(tmp_path / "merged").eval()(ids).logits
        before = LlamaForCausalLM.from_pretrained(model).eval()(ids).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert (found - before).abs().max() > 0.1  # the adapter does something


def forward(model: Any, ids: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The logits of a NeMo model, on a CPU."""
    from megatron.core.tensor_parallel.random import CudaRNGStatesTracker

    # Megatron asks for CUDA's generator before a dropout that is off.
    monkeypatch.setattr(CudaRNGStatesTracker, "fork", lambda *_: contextlib.nullcontext())
    places = torch.arange(ids.shape[1])[None]
    after = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1)  # Megatron: True is hidden
    with cpu.without_cuda(), torch.no_grad():
        return model.eval()(ids, places, after)


def test_what_nemo_could_not_carry_is_refused(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"model_type": "qwen2"}, "'qwen2', and this engine knows llama"),
        ({"attention_bias": True}, "attention_bias is set"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling is 'yarn'"),
        (
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 2.0}},
            "low_freq_factor is 2.0; NeMo has 1.0",
        ),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(InputError, match=words):
            convert.to_nemo(folder, tmp_path / "never")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "rope_theta"}))
    with pytest.raises(InputError, match="rope_theta is missing"):
        convert.to_nemo(folder, tmp_path / "never")
    with pytest.raises(InputError, match="no whole NeMo 2 checkpoint"):
        convert.to_hf(tmp_path, tmp_path / "never")


def test_llama_31s_rotary_scaling_is_carried(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    rope = {"rope_type": "llama3", "factor": 32.0, **convert.LLAMA31_ROPE}
    (folder / "config.json").write_text(json.dumps({**config, "rope_scaling": rope}))
    convert.to_nemo(folder, tmp_path / "start")
    convert.to_hf(tmp_path / "start", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["rope_scaling"] == rope


@pytest.mark.parametrize("left_out", range(len(cpu.stand_ins())))
def test_every_stand_in_is_needed(
    left_out: int, model: Path, adapted: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a new NeMo no longer needs one, this fails and the stand-in goes."""
    every = cpu.stand_ins()
    name = every[left_out][1]
    monkeypatch.setattr(cpu, "stand_ins", lambda: [one for one in every if one[1] != name])
    with pytest.raises(Exception), contextlib.redirect_stdout(None):  # noqa: B017, PT011, PT012
        convert.to_nemo(model, tmp_path / "start")
        convert.to_hf(tmp_path / "start", tmp_path / "back")
        convert.to_peft(adapted[0], tmp_path / "adapter")
