"""Model Optimizer's quantisation on a CPU, and the checkpoints read back: what their bytes mean, to the bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.serving.targets import PRECISIONS
from pipeline.stages.export import quantise, quantised
from pipeline.stages.step import InputError, Step
from tests.miniature import make_inputs, run_stage

GROUP = 128
SAMPLES = [
    torch.randint(4, 500, (48,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(6)
]
FORMATS = [
    ("fp8", "auto"),
    ("fp8", "fp8"),
    ("int4-awq", "auto"),
    ("w4a8-awq", "auto"),
    ("nvfp4", "auto"),
    ("nvfp4", "fp8"),
]


@pytest.fixture(scope="module")
def model() -> Any:
    """A random Llama of widths that every format can group, rotary scaling and grouped heads included."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=512, hidden_size=256, intermediate_size=384, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.04,
        eos_token_id=3, pad_token_id=1, bos_token_id=0,
        rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                      "original_max_position_embeddings": 64},
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    return LlamaForCausalLM(config).to(torch.bfloat16).eval()


class Silent:
    def save_pretrained(self, folder: Path) -> None: ...


def step(folder: Path) -> Step:
    folder.mkdir(parents=True, exist_ok=True)
    return Step("export", "pipeline.stages.export", "r", "0" * 64, {}, {}, None, folder, 1)


@pytest.fixture(scope="module")
def checkpoints(model: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """Every format's checkpoint, by weights and cache."""
    found = {}
    for weights, cache in FORMATS:
        folder = tmp_path_factory.mktemp(f"{weights}-{cache}")
        done = quantise.quantise(copy.deepcopy(model), weights, cache, SAMPLES, step(folder / "work"))
        quantise.write(done, Silent(), folder / "checkpoint", {"eos_token_id": [3]})
        found[weights, cache] = folder / "checkpoint"
    return found


@pytest.mark.parametrize(("weights", "cache"), FORMATS)
def test_what_is_written_says_what_it_is(
    weights: str, cache: str, checkpoints: dict[tuple[str, str], Path]
) -> None:
    said = json.loads((checkpoints[weights, cache] / "hf_quant_config.json").read_text())["quantization"]
    assert said["quant_algo"] == PRECISIONS[weights].algorithm
    assert said["kv_cache_quant_algo"] == ("FP8" if cache == "fp8" else None)
    assert "lm_head" in said["exclude_modules"]
    config = json.loads((checkpoints[weights, cache] / "config.json").read_text())
    assert config["rope_scaling"]["factor"] == 8.0


@pytest.mark.parametrize("weights", ["fp8", "int4-awq", "w4a8-awq", "nvfp4"])
def test_weights_read_back_lie_within_the_formats_rounding(
    weights: str, model: Any, checkpoints: dict[tuple[str, str], Path]
) -> None:
    back = quantised.load(checkpoints[weights, "auto"])
    checked = 0
    for name, layer in back.named_modules():
        if not isinstance(layer, quantised.QuantisedLinear) or "o_proj" not in name:
            continue  # AWQ moves factors of the others into the norm before them
        wanted = model.get_submodule(name).weight.float()
        got = layer.weight if layer.factors is None else layer.weight * layer.factors
        if weights == "fp8":
            bound = (wanted.abs() / 16).clamp_min(wanted.abs().max() / 448 * 2.0**-10) * 1.01
        elif weights == "nvfp4":
            # Half the widest gap of e2m1 (4 to 6) in units of the block's largest, and the scale's own rounding.
            bound = blocks(wanted, 16) * (1 / 6 + 1 / 16)
        else:
            # Half of one of 7 steps, of the block's largest once AWQ's factors are in; then e4m3.
            factors = torch.ones(wanted.shape[1]) if layer.factors is None else layer.factors
            bound = (
                blocks(wanted / factors, GROUP)
                * factors
                * (1 / 13.9 + (1 / 16 if weights == "w4a8-awq" else 0))
            )
        # Factors and scales are kept in bf16 on the way.
        assert bool(((got - wanted).abs() <= bound * 1.02 + wanted.abs() / 128).all()), name
        assert not torch.equal(got, wanted)
        checked += 1
    assert checked == 2


def blocks(weight: Tensor, size: int) -> Tensor:
    """The largest magnitude of each block of inputs, at every element."""
    return weight.unflatten(1, (-1, size)).abs().amax(-1).repeat_interleave(size, dim=1)


@pytest.mark.parametrize(("weights", "cache"), FORMATS)
def test_the_model_read_back_is_near_the_one_it_was_made_of(
    weights: str, cache: str, model: Any, checkpoints: dict[tuple[str, str], Path]
) -> None:
    back, whole = quantised.load(checkpoints[weights, cache]), model.float()
    ids = torch.tensor([SAMPLES[0]])
    with torch.no_grad():
        got, wanted = back(ids).logits, whole(ids).logits
    model.to(torch.bfloat16)
    error = float((got - wanted).norm() / wanted.norm())
    least, most = (0.01, 0.12) if weights == "fp8" else (0.05, 0.45)
    assert least < error < most


def test_a_quantised_cache_makes_a_difference(model: Any, checkpoints: dict[tuple[str, str], Path]) -> None:
    ids = torch.tensor([SAMPLES[1]])
    with torch.no_grad():
        plain, kept = (quantised.load(checkpoints["fp8", cache])(ids).logits for cache in ("auto", "fp8"))
    assert 0 < float((plain - kept).abs().max()) < float(plain.abs().max())


def test_rounding_is_that_of_the_formats() -> None:
    one = torch.tensor(1.0)
    values = torch.tensor([0.0, 1.03, 1.07, 17.0, 18.9, 500.0, -500.0, 2.0**-9])
    assert quantised.to_e4m3(values, one).tolist() == [0.0, 1.0, 1.125, 16.0, 18.0, 448.0, -448.0, 2.0**-9]
    block = torch.tensor(
        [6.0, -6.0, 5.1, 4.9, 0.25, 0.24, 0.26, 1.25, 1.75, 2.5, 3.5, -3.5, 5.0, 0.75, 0.0, -0.1]
    )
    wanted = [6.0, -6.0, 6.0, 4.0, 0.0, 0.0, 0.5, 1.0, 2.0, 2.0, 4.0, -4.0, 4.0, 1.0, 0.0, 0.0]
    assert quantised._e2m1_input(block, one).abs().tolist() == [abs(value) for value in wanted]


def test_what_cannot_be_grouped_is_the_users_to_know(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=80, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    config.architectures = ["LlamaForCausalLM"]
    small = LlamaForCausalLM(config).to(torch.bfloat16).eval()
    with pytest.raises(InputError, match=r"export\.weights"):
        quantise.quantise(small, "int4-awq", "auto", [[5, 6, 7]], step(tmp_path))


def test_a_checkpoint_with_something_missing_is_refused(
    checkpoints: dict[tuple[str, str], Path], tmp_path: Path
) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(checkpoints["fp8", "auto"], tmp_path / "c")
    tensors = load_file(broken / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, broken / "model.safetensors")
    with pytest.raises(ValueError, match=r"has no model\.layers\.1\.mlp\.down_proj\.weight"):
        quantised.load(broken)
    said = json.loads((broken / "hf_quant_config.json").read_text())
    said["quantization"]["quant_algo"] = "NEW"
    (broken / "hf_quant_config.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match="cannot read NEW; known: FP8"):
        quantised.load(broken)


def test_an_export_for_gpus_is_whole_and_measured(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path / "inputs")
    sft = inputs["data"] / "sft"
    (sft / "train.jsonl").write_text((sft / "test.jsonl").read_text())
    settings = {
        "target": "trtllm", "weights": "fp8", "kv_cache": "fp8", "gpu": "H100", "calibration_samples": 8,
        "tolerance": {"different": 1.0, "top1_agreement": 0.3, "kl": 1.0},
    }  # fmt: skip
    status, told = run_stage("export", tmp_path / "w", inputs, settings)
    assert status == 0, told
    output = tmp_path / "w" / "output"
    said = json.loads((output / "parity.json").read_text())
    assert said["quantisation"]["quant_algo"] == "FP8"
    assert said["calibration"]["samples"] == 8
    assert said["logits"]["mean_difference"] > 0
    assert said["template_equal"] == said["prompts"]
    assert said["perplexity"]["documents"] == 6
    assert said["perplexity"]["before"] != said["perplexity"]["after"]
    version = output / "repository" / "assistant" / "1"
    bundle = output / "bundle"
    for name in ("generation_config.json", "tokenizer.json"):
        assert (version / "checkpoint" / name).read_bytes() == (bundle / name).read_bytes()
    made = json.loads((output / "export.json").read_text())
    assert made["target"] == "trtllm"
    assert "nvidia-modelopt" in made["made_with"]
