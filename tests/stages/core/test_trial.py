"""A base that transformers cannot make a model of is refused when a step is given it, in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import trial
from pipeline.stages.models import served_generation
from pipeline.stages.step import InputError

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": [2, 40], "pad_token_id": 40,
}  # fmt: skip
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def base(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {}, {"tie_word_embeddings": True}, {"num_key_value_heads": None}, {"hidden_act": "gelu", "mlp_bias": True},
        {"head_dim": 6}, {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, {"dtype": "bfloat16"}, {"pretraining_tp": 1},
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0}},
    ],
)  # fmt: skip
def test_what_transformers_builds_passes(tmp_path: Path, changes: dict[str, Any]) -> None:
    trial.check(base(tmp_path / "base", **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "nonsense"}, {"hidden_act": None}, {"rope_scaling": {"rope_type": "foo", "factor": 2.0}},
        {"_attn_implementation": "flash_attention_9"}, {"model_type": "no-such-model"},
        {"return_dict": False}, {"rms_norm_eps": "small"}, {"id2label": "x"},
    ],
)  # fmt: skip
def test_what_it_does_not_is_one_sentence(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = base(tmp_path / "base", **changes)
    with pytest.raises(InputError) as caught:
        trial.check(folder)
    assert str(caught.value).startswith(f"model.base: {folder}: ")
    assert "\n" not in str(caught.value)


def test_of_a_models_own_defaults_only_what_is_served_is_kept() -> None:
    from transformers import GenerationConfig

    own = GenerationConfig(repetition_penalty=1.1, no_repeat_ngram_size=3, temperature=0.5, pad_token_id=-1)
    kept = served_generation(own)
    assert (kept.repetition_penalty, kept.no_repeat_ngram_size, kept.pad_token_id) == (
        1.1,
        GenerationConfig().no_repeat_ngram_size,
        None,
    )
    assert served_generation(GenerationConfig(repetition_penalty=None)).repetition_penalty == 1.0
