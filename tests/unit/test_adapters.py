"""Which LoRA adapters can be merged and served, and under which names."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline import adapters, recipe, schema
from pipeline.errors import UserError
from pipeline.runner import inputs
from pipeline.serving import repository
from tests.unit.test_base import safetensors

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "bias": "none"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, None),
        ({"use_dora": True, "use_rslora": True, "rank_pattern": {"q_proj": 4}}, None),
        ({"init_lora_weights": "gaussian", "modules_to_save": None}, None),
        ({"init_lora_weights": "pissa_niter_16"}, "init_lora_weights is 'pissa_niter_16'"),
        ({"peft_type": "IA3"}, "peft_type is 'IA3'; what can be merged and served has 'LORA'"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS'"),
    ],
)
def test_what_peft_can_do_beside_plain_lora_is_refused(settings: dict[str, Any], told: str | None) -> None:
    fault = adapters.fault({**PLAIN, **settings})
    assert fault == told or (told is not None and fault is not None and told in fault)


def test_a_configuration_that_says_too_little_is_refused() -> None:
    assert adapters.fault({"peft_type": "LORA", "r": 8}) == "adapter_config.json does not say lora_alpha"
    nothing = {"peft_type": "LORA", "r": None, "lora_alpha": 8}
    assert adapters.fault(nothing) == "adapter_config.json does not say r"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, None),
        ({"use_rslora": True}, None),
        ({"use_dora": True}, "DoRA"),
        ({"alpha_pattern": {"q_proj": 4}}, "alpha_pattern gives layers scales of their own"),
        ({"r": 65}, "its rank is 65, and export.serving.max_lora_rank 64"),
    ],
)
def test_what_engines_cannot_add_to_a_request_is_refused(settings: dict[str, Any], told: str | None) -> None:
    fault = adapters.request_fault({**PLAIN, **settings}, 64)
    assert fault == told or (told is not None and fault is not None and told in fault)


def test_scales_are_pefts() -> None:
    layer = "model.layers.1.self_attn.q_proj"
    assert adapters.scale(PLAIN, layer, 8) == 2.0
    assert adapters.scale({**PLAIN, "use_rslora": True}, layer, 4) == 16 / math.sqrt(4)
    patterns = {"alpha_pattern": {"proj": 1, "q_proj": 4, r"layers\.1\..*": 32}}
    assert (
        adapters.scale({**PLAIN, **patterns}, layer, 8) == 0.5
    )  # a whole part of the name, the first that fits
    assert adapters.scale({**PLAIN, **patterns}, layer.replace("q_", "k_"), 8) == 4.0


def test_clients_see_one_list_of_names_whoever_serves_them() -> None:
    def names(target: str, *adapters: str) -> dict[str, dict[str, str]]:
        made = schema.Export(target=target, adapters=dict.fromkeys(adapters, "/x"))
        made.settle(gpus=0)
        return repository.models(made)

    base = {"model": "assistant", "lora": ""}
    assert names("cpu-openvino", "pirate") == {"assistant": base, "pirate": {"model": "pirate", "lora": ""}}
    for target in ("trtllm", "vllm"):
        assert names(target, "pirate") == {
            "assistant": base,
            "pirate": {"model": "assistant", "lora": "pirate"},
        }
    assert names("trtllm-engine") == {"assistant": base}


def test_a_merged_variant_is_a_model_of_the_repository_with_the_same_contract() -> None:
    export = schema.Export(adapters={"pirate": "/x"})
    export.settle(gpus=0)
    files = repository.files(export, "f" * 64, 256)
    base = {path.removeprefix("assistant/"): text for path, text in files.items() if path.startswith("assis")}
    variant = {
        path.removeprefix("pirate/"): text for path, text in files.items() if path.startswith("pirate/")
    }
    assert variant.pop("config.pbtxt") == base.pop("config.pbtxt").replace(
        'name: "assistant"', 'name: "pirate"'
    )
    assert variant == base


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("export.adapters.a/b=/x", "'a/b' names a folder"),
        ("export.adapters.v1.2=/x", "'v1' names a folder and a model"),
        ("export.adapters.assistant=/x", "'assistant' is the name of one of the server's own models"),
        ("export.adapters.assistant-vllm=/x", "'assistant-vllm' is the name of one"),
        ("export.model_name=m export.adapters.m-engine=/x", "'m-engine' is the name of one"),
        (
            "export.target=trtllm-engine export.adapters.polite=/x",
            "a request cannot choose an adapter on trtllm-engine (trtllm, vllm can)",
        ),
    ],
)
def test_adapters_that_no_target_serves_are_refused(setting: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        recipe.load("llama-mini", ROOT, setting)
    assert told in str(refused.value)


@pytest.mark.parametrize(
    ("target", "config", "told"),
    [
        ("cpu-openvino", {**PLAIN, "use_dora": True}, None),
        ("cpu-openvino", {**PLAIN, "bias": "lora_only"}, "bias is 'lora_only'"),
        ("trtllm", {**PLAIN, "use_dora": True}, "DoRA"),
        ("vllm", {**PLAIN, "r": 128}, "its rank is 128"),
        ("vllm", [], "adapter_config.json: is [], not a JSON object"),
        ("vllm", {**PLAIN, "r": "8"}, "r is '8', not a whole number"),
        ("vllm", {**PLAIN, "r": 0}, "r is 0, not at least 1"),
        ("vllm", {**PLAIN, "lora_alpha": [16]}, "lora_alpha is [16], not a number"),
        ("cpu-openvino", {**PLAIN, "alpha_pattern": {"(": 1}}, "alpha_pattern has 1 for '('"),
        (
            "cpu-openvino",
            {**PLAIN, "rank_pattern": ["x"]},
            "rank_pattern is ['x'], not a number for every pattern",
        ),
        ("cpu-openvino", {**PLAIN, "weights": b"x"}, "adapter_model.safetensors: is cut off"),
    ],
)
def test_an_adapter_is_looked_at_before_anything_starts(
    target: str, config: Any, told: str | None, tmp_path: Path
) -> None:
    weights = safetensors({"w": (1,)})
    if isinstance(config, dict):
        weights = config.get("weights", weights)
        config = {name: value for name, value in config.items() if name != "weights"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (tmp_path / "adapter_model.safetensors").write_bytes(weights)
    loaded = recipe.load("llama-mini", ROOT, f"export.target={target} export.adapters.polite={tmp_path}")
    if told is None:
        inputs.check_inputs(loaded)
        return
    with pytest.raises(UserError, match=r"export\.adapters\.polite") as refused:
        inputs.check_inputs(loaded)
    assert told in str(refused.value)
