"""What an export may ask of a target, and the repository that is written for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import recipe, schema
from pipeline.errors import UserError
from pipeline.runner import inputs
from pipeline.runner.digests import DigestMemory
from pipeline.serving import engines, repository
from pipeline.serving.targets import GPUS, PRECISIONS, TARGETS, precision_fault

ROOT = Path(__file__).resolve().parents[2]


def export(**settings: Any) -> schema.Export:
    made = schema.Export(**settings)
    made.settle(gpus=0)
    return made


def test_auto_is_decided_by_what_the_recipe_is_made_for() -> None:
    cpu, gpu = schema.Export(), schema.Export()
    cpu.settle(gpus=0)
    gpu.settle(gpus=8)
    assert (cpu.target, cpu.weights) == ("cpu-openvino", "fp32")
    assert (gpu.target, gpu.weights) == ("trtllm", "bf16")
    assert recipe.load("llama-8b", ROOT).settings.export.target == "trtllm"
    assert recipe.load("llama-tiny", ROOT).settings.export.target == "cpu-openvino"


@pytest.mark.parametrize(
    ("target", "weights", "gpu", "told"),
    [
        ("trtllm", "fp8", "H100", None),
        ("trtllm", "fp8", None, None),
        (
            "trtllm",
            "fp8",
            "A100",
            "fp8 needs Ada or Hopper or Blackwell, and A100 is Ampere; what it can run: bf16",
        ),
        ("trtllm", "nvfp4", "H100", "nvfp4 needs Blackwell"),
        ("trtllm", "nvfp4", "B200", None),
        ("trtllm", "int8", "H100", "int8 is for cpu-openvino"),
        (
            "vllm",
            "int4-awq",
            None,
            "vllm does not read int4-awq: it reads bf16, fp8, nvfp4; int4-awq is for trtllm",
        ),
        ("trtllm", "fp8", "GTX 1080", "no such GPU is known: 'GTX 1080'; known are A100"),
        ("cpu-openvino", "fp8", None, "it reads fp32, bf16, int8, int4"),
    ],
)
def test_a_precision_that_cannot_run_is_refused_with_those_that_can(
    target: str, weights: str, gpu: str | None, told: str | None
) -> None:
    fault = precision_fault(target, weights, gpu)
    assert fault == told or (told is not None and fault is not None and told in fault)


def test_every_target_has_a_default_and_each_gpu_can_run_something() -> None:
    for target in TARGETS.values():
        assert target.default in target.precisions
        assert set(target.precisions) <= set(PRECISIONS)
        if target.gpu:
            for gpu in GPUS:
                assert precision_fault(target.name, target.default, gpu) is None


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"max_batch_size": 8, "kv_cache_config": {"free_gpu_memory_fraction": 0.5, "dtype": "fp8"}}, None),
        ({"cuda_graph_config": None}, None),
        ({"max_batch_sice": 8}, "did you mean 'max_batch_size'?"),
        ({"max_batch_size": "8"}, "'8' is no Optional[int]"),
        ({"max_batch_size": True}, "True is no"),
        ({"kv_cache_config": {"fraction": 0.5}}, "kv_cache_config.fraction"),
        ({"quant_config": {}}, "has no 'quant_config'"),
        ({"guided_decoding_backend": "outlines"}, "is no Optional[Literal"),
        ({"scheduler_config": {"capacity_scheduler_policy": "BEST"}}, "capacity_scheduler_policy"),
        (
            {
                "speculative_config": {
                    "decoding_type": "NGram",
                    "max_draft_len": 4,
                    "max_matching_ngram_size": 2,
                }
            },
            None,
        ),
        ({"speculative_config": {"decoding_type": "NGram", "max_draft_len": 4}}, "NGram needs it"),
        ({"speculative_config": {"decoding_type": "Medusa"}}, "'Medusa' is not one of"),
        ({"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 1, "x": 1}}, "config.x"),
    ],
)
def test_arguments_are_those_of_the_released_llm_api(values: dict[str, Any], told: str | None) -> None:
    said = [f"{path}: {why}" for path, why in engines.faults(engines.TENSORRT_LLM, "TorchLlmArgs", values)]
    assert said == [] if told is None else any(told in each for each in said), said


def test_what_export_writes_is_what_the_engines_take() -> None:
    everything = {
        "kv_cache": "fp8",
        "adapters": {"polite": "/adapters/polite"},
        "serving": schema.Serving(tensor=4, max_length=4096),
    }
    for target in ("trtllm", "vllm"):
        assert repository.argument_faults(export(target=target), 8192) == []
        assert repository.argument_faults(export(target=target, **everything), 8192) == []
    wrong = export(target="trtllm", serving=schema.Serving(arguments={"max_batch_sise": 5}))
    [(setting, why)] = repository.argument_faults(wrong, 8192)
    assert setting == "export.serving.arguments"
    assert "did you mean 'max_batch_size'" in why


def test_the_repository_of_trtllm_is_whole_and_has_the_contract() -> None:
    files = repository.files(export(target="trtllm", weights="fp8", model_name="m"), "f" * 64, 8192)
    own = repository.files(export(model_name="m"), "f" * 64, 256)
    assert {"m/config.pbtxt", "m/1/model.py", "m/1/engine.py", "m/1/serve.py", "m/1/model.yaml"} <= set(files)
    assert "m/1/beside.py" not in own
    # Training's own code makes tokens of what is asked.
    for name in ("template.py", "tokenizer.py"):
        wanted = (ROOT / "pipeline/conversations" / name).read_text(encoding="utf-8")
        assert files[f"m/1/conversations/{name}"] == own[f"m/1/conversations/{name}"] == wanted
    # The client sees one contract: the same bytes but for the target's own parameters.
    contract = [text.split("parameters {")[0] for text in (files["m/config.pbtxt"], own["m/config.pbtxt"])]
    assert contract[0] == contract[1]
    for name in ("model.py", "parameters.py", "sampling.py", "text_stream.py", "pieces.py"):
        assert files[f"m/1/{name}"] == own[f"m/1/{name}"]
    content = yaml.safe_load(files["m/1/model.yaml"])
    serving = schema.Serving(arguments={"kv_cache_config": {"tokens_per_block": 64}}, max_length=1024)
    more = repository.files(export(target="trtllm", model_name="m", serving=serving), "f" * 64, 8192)
    cache = yaml.safe_load(more["m/1/model.yaml"])["kv_cache_config"]
    assert cache == {"free_gpu_memory_fraction": 0.9, "enable_block_reuse": True, "tokens_per_block": 64}
    # Graphs of the sizes that are batched; sizes of the user's own say themselves which is the largest.
    sizes = schema.Serving(arguments={"cuda_graph_config": {"batch_sizes": [1, 2]}})
    graphs = [
        repository.llm_arguments(export(target="trtllm", serving=serving), 8192)["cuda_graph_config"]
        for serving in (schema.Serving(max_batch_size=8), sizes)
    ]
    assert graphs == [
        {"enable_padding": True, "max_batch_size": 8},
        {"enable_padding": True, "batch_sizes": [1, 2]},
    ]
    # The contract refuses what the engine would not take.
    assert 'key: "context" value { string_value: "1024" }' in more["m/config.pbtxt"]
    assert content["model"] == "checkpoint"
    assert content["triton_config"]["decoupled"] is True
    assert content["max_seq_len"] == 8192
    assert "$" not in files["m/config.pbtxt"].replace("dollar signs", "")


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("export.weights=fp8", "export.weights: cpu-openvino does not read fp8"),
        (
            "export.target=trtllm export.weights=fp8 export.gpu=A100",
            "export.weights: fp8 needs Ada or Hopper",
        ),
        (
            "export.target=trtllm export.weights=int4-awq",
            "each 128 inputs of a layer, and model.hidden_size is 32",
        ),
        ("export.target=trtllm export.gpu=V100", "export.gpu: no such GPU is known"),
        ("export.kv_cache=fp8", "export.kv_cache: cpu-openvino keeps"),
        (
            "export.target=trtllm export.kv_cache=fp8",
            "fp8 needs scales, which calibration finds: bf16 has none",
        ),
        ("export.target=trtllm export.serving.arguments.trust_remote_code=true", "it stays off"),
        ("export.target=trtllm export.serving.arguments.max_batch=1", "has no 'max_batch'"),
        (
            "export.target=trtllm export.serving.arguments.max_batch_size=1",
            "max_batch_size is what export.serving's own",
        ),
        ("export.target=vllm export.serving.arguments.model=/x", "model is what export.serving's own"),
        (
            "export.target=trtllm-engine export.kv_cache=fp8 export.weights=fp8",
            "is not measured on trtllm-engine",
        ),
        ("export.target=trtllm export.serving.tensor=4", "4 does not divide model.heads"),
        ("export.tolerance.greedy=1", "what can be tolerated: different"),
        ("export.tolerance.kl=-1", "not a number of 0 or more"),
    ],
)
def test_a_recipe_that_cannot_be_served_is_refused(setting: str, told: str) -> None:
    with pytest.raises(UserError) as refused:
        recipe.load("llama-mini", ROOT, setting)
    assert told in str(refused.value)


def test_the_repository_of_vllm_has_the_backend_behind_the_contract() -> None:
    adapters = {"polite": "/adapters/polite"}
    files = repository.files(export(target="vllm", model_name="m", adapters=adapters), "f" * 64, 8192)
    arguments = json.loads(files["m-vllm/1/model.json"])
    assert arguments["model"] == "/models/m-vllm/1/checkpoint"
    assert arguments["trust_remote_code"] is False
    assert json.loads(files["m-vllm/1/multi_lora.json"]) == {"polite": "/models/m-vllm/1/adapters/polite"}
    assert 'backend: "vllm"' in files["m-vllm/config.pbtxt"]
    assert 'backend: "python"' in files["m/config.pbtxt"]


def test_the_repository_of_the_engines_has_the_line_that_builds_them() -> None:
    serving = schema.Serving(tensor=2, max_batch_size=8, kv_cache_reuse=False)
    files = repository.files(export(target="trtllm-engine", model_name="m", serving=serving), "f" * 64, 4096)
    config = files["m-engine/config.pbtxt"]
    assert 'key: "gpt_model_path" value { string_value: "/models/m-engine/1/engine" }' in config
    assert 'key: "enable_kv_cache_reuse" value { string_value: "false" }' in config
    assert "max_batch_size: 8" in config
    line = files["m-engine/1/build.sh"]
    assert "trtllm-build \\\n  --checkpoint_dir checkpoint" in line
    assert "--max_seq_len 4096" in line
    assert "--workers 2" in line
    # The model of the contract asks at most as many requests at once as the backend batches.
    assert 'key: "most_requests" value { string_value: "8" }' in files["m/config.pbtxt"]


def test_an_adapter_is_known_by_its_bytes_and_not_by_its_place(tmp_path: Path) -> None:
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        for file in inputs.ADAPTER_FILES:
            (tmp_path / place / file).write_text(file)
    memory = DigestMemory(tmp_path / "digests.json")
    found = [
        inputs.adapters(export(target="trtllm", adapters={"polite": str(tmp_path / place)}), memory)
        for place in ("here", "there")
    ]
    here, there = ({role: each.digest for role, each in one.items()} for one in found)
    assert here == there
    assert set(found[0]) == {f"adapters.polite/{file}" for file in inputs.ADAPTER_FILES}
    given = f"export.target=trtllm export.adapters.polite={tmp_path}"
    with pytest.raises(UserError, match=r"is no PEFT folder: it has no adapter_config\.json"):
        inputs.check_inputs(recipe.load("llama-mini", ROOT, given))


def test_the_catalogues_say_where_they_come_from() -> None:
    for name in (engines.TENSORRT_LLM, engines.VLLM):
        said = engines.catalogue(name)
        assert said["version"] in name
        assert said["source"]
