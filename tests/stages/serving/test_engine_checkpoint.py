"""TensorRT-LLM's own checkpoint: what was cut over GPUs is put together again, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.stages.export import engine_checkpoint, quantise
from pipeline.stages.step import InputError, Step
from tests.miniature import make_inputs, run_stage

SAMPLES = [
    torch.randint(4, 500, (48,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(4)
]


def llama(**other: Any) -> Any:
    """A random Llama in bf16: 4 query heads over 2 key heads, rotary scaling."""
    torch.manual_seed(5)
    values: dict[str, Any] = {
        "vocab_size": 512, "hidden_size": 256, "intermediate_size": 384, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "eos_token_id": 3,
        "rope_theta": 500000.0, "initializer_range": 0.04, "tie_word_embeddings": False,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64},
    }  # fmt: skip
    config = LlamaConfig(**{**values, **other})
    config.architectures = ["LlamaForCausalLM"]
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("other", [{}, {"vocab_size": 510}, {"tie_word_embeddings": True}], ids=str)
def test_every_weight_comes_back_from_all_ranks(other: dict[str, Any], tensor: int, tmp_path: Path) -> None:
    model = llama(**other)
    wanted = {name: value.clone() for name, value in model.state_dict().items()}
    engine_checkpoint.write(model, tmp_path / "c", tensor)
    assert len(list((tmp_path / "c").glob("rank*.safetensors"))) == tensor
    got = engine_checkpoint.rebuild(tmp_path / "c")
    assert set(wanted) - {"lm_head.weight"} <= set(got) <= set(wanted)
    for name, value in got.items():
        assert value.dtype == torch.bfloat16
        assert torch.equal(value, wanted[name]), name
    said = json.loads((tmp_path / "c" / "config.json").read_text())
    assert said["rotary_base"] == 500000.0
    assert said["rotary_scaling"]["factor"] == 8.0
    assert said["mapping"]["tp_size"] == tensor


@pytest.mark.parametrize(
    ("weights", "tensor"), [("fp8", 1), ("fp8", 2), ("fp8", 4), ("int8-sq", 1), ("int8-sq", 2)]
)
def test_quantised_weights_come_back_within_their_rounding(weights: str, tensor: int, tmp_path: Path) -> None:
    model = llama()
    wanted = {name: value.float() for name, value in model.state_dict().items()}
    step = Step("export", "m", "r", "0" * 64, {}, {}, None, tmp_path / "w", 1)
    (tmp_path / "w").mkdir()
    done = quantise.quantise(model, weights, "auto", SAMPLES, step)
    engine_checkpoint.write(done, tmp_path / "c", tensor)
    got = engine_checkpoint.rebuild(tmp_path / "c")
    rounded = 0
    for name, value in got.items():
        if "proj" not in name:
            assert torch.equal(value.float(), wanted[name]), name
            continue
        # SmoothQuant moves large inputs into the weights, where single ones are rounded the more coarsely.
        error = float((value - wanted[name]).norm() / wanted[name].norm())
        assert 0 < error < (0.03 if weights == "fp8" else 0.02), (name, error)
        rounded += 1
    assert rounded == 14


def test_scales_of_a_key_head_that_ranks_share_cannot_be_cut(tmp_path: Path) -> None:
    step = Step("export", "m", "r", "0" * 64, {}, {}, None, tmp_path, 1)
    done = quantise.quantise(llama(), "int8-sq", "auto", SAMPLES, step)
    with pytest.raises(InputError, match="cannot cut this checkpoint over 4 GPUs"):
        engine_checkpoint.write(done, tmp_path / "c", 4)


def test_rotary_settings_that_are_lost_are_noticed() -> None:
    config = llama().config.to_dict()
    written = {"rotary_base": 500000.0, "rotary_scaling": dict(config["rope_scaling"])}
    assert engine_checkpoint.rotary_faults(written, config) == []
    [fault] = engine_checkpoint.rotary_faults({**written, "rotary_base": 10000.0}, config)
    assert "rotary_base is 10000.0, the model's 500000.0" in fault
    lost = engine_checkpoint.rotary_faults({"rotary_base": 500000.0, "rotary_scaling": None}, config)
    assert any("factor None, the model 8.0" in fault for fault in lost)
    # transformers 5 keeps both in rope_parameters, where Model Optimizer does not look.
    newer = {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}}
    assert len(engine_checkpoint.rotary_faults({"rotary_base": None, "rotary_scaling": None}, newer)) == 3


def test_ranks_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    engine_checkpoint.write(llama(), tmp_path / "c", 4)
    for name, change in (
        ("transformer.ln_f.weight", lambda value: value + 1),
        ("transformer.layers.0.attention.qkv.weight", lambda value: value.flip(0)),
    ):
        broken = shutil.copytree(tmp_path / "c", tmp_path / name)
        tensors = load_file(broken / "rank1.safetensors")
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, broken / "rank1.safetensors")
        with pytest.raises(ValueError, match="not the same on all ranks that share it"):
            engine_checkpoint.rebuild(broken)


@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_an_export_of_engines_is_whole_and_measured(weights: str, tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    sft = inputs["data"] / "sft"
    (sft / "train.jsonl").write_text((sft / "test.jsonl").read_text())
    settings = {
        "target": "trtllm-engine", "weights": weights, "calibration_samples": 8,
        "tolerance": {"different": 1.0, "top1_agreement": 0.3, "kl": 1.0},
    }  # fmt: skip
    status, told = run_stage("export", tmp_path / "w", inputs, settings)
    assert status == 0, told
    model = tmp_path / "w" / "output" / "repository" / "assistant-engine"
    assert (model / "1" / "checkpoint" / "rank0.safetensors").is_file()
    assert (model / "1" / "tokenizer" / "generation_config.json").is_file()
    said = json.loads((tmp_path / "w" / "output" / "parity.json").read_text())
    assert said["weights_rebuilt"] >= 20
    assert said["faults"] == []
