"""Merging an adapter gives PEFT's own merged model, whichever way its scales are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.stages.models import merge_adapter
from pipeline.stages.step import InputError

FILE = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=1, **shape)).save_pretrained(folder)
    return folder


def adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """An adapter of all projections, written by PEFT, with random numbers in both of its matrices."""
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=12,
        target_modules=r".*_proj",
        **{"use_dora": False, **settings},
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.rand_like(weight) * (2.0 if "magnitude" in name else 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_dora": True},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 8}, "alpha_pattern": {"up_proj": 3}},
        {"alpha_pattern": {"proj": 1, "v_proj": 20}, "use_dora": True, "use_rslora": True},
    ],
)
def test_merged_weights_are_pefts(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter", **settings)
    merge_adapter(base, folder, tmp_path / "merged")
    ours = LlamaForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    before = LlamaForCausalLM.from_pretrained(base)
    unmerged = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    theirs = PeftModel.from_pretrained(before, folder).merge_and_unload().state_dict()
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-5, atol=1e-6)
        assert torch.equal(ours[name], unmerged[name]) == (not name.endswith("_proj.weight"))


def test_an_adapter_of_another_model_is_refused_by_name(base: Path, tmp_path: Path) -> None:
    folder = adapter(base, tmp_path / "adapter")
    weights = load_file(folder / FILE)
    kept = "base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"
    for number, (change, told) in enumerate(
        (
            ({kept: torch.ones(1, 4)}, r"layers\.0\.mlp\.up_proj does not fit .*\(48, 32\)"),
            ({kept: torch.ones(48, 5)}, r"layers\.0\.mlp\.up_proj does not fit"),
            ({kept: None}, r"layers\.0\.mlp\.up_proj does not fit"),
            ({kept.replace("layers.0", "layers.7"): torch.ones(48, 4)}, r"layers\.7.* would be left out"),
            (
                {kept.replace("0.mlp.up_proj.lora_B", "9.mlp.up_proj.lora_A"): torch.ones(4, 32)},
                "does not have",
            ),
            ({"base_model.model.lm_head.weight": torch.ones(64, 32)}, r"lm_head\.weight would be left out"),
        )
    ):
        changed = {name: each for name, each in {**weights, **change}.items() if each is not None}
        save_file(changed, folder / FILE)
        with pytest.raises(InputError, match=told):
            merge_adapter(base, folder, tmp_path / str(number))
