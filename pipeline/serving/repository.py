"""The Triton model repository of an export, as far as it is text: written from settings alone.

Everything but weights and tokenizer is here, so that the repository of a model that nobody has yet can be
looked at and checked (``--dry-run``) on any machine::

    <model_name>/config.pbtxt        one client contract on every target (``deploy/triton/config.pbtxt``)
    <model_name>/1/*.py              the contract's Python and the target's engine (``deploy/triton/``)
    <model_name>/1/model.yaml        trtllm: arguments of ``LLM()`` and ``triton_config``

What the exporter adds: ``1/openvino`` or ``1/checkpoint``, and ``1/adapters``.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import yaml

from pipeline import schema
from pipeline.serving.engines import TENSORRT_LLM, faults
from pipeline.serving.targets import CPU_OPENVINO, TRTLLM

SOURCE = Path(__file__).resolve().parents[2] / "deploy" / "triton"
FOLDERS = {CPU_OPENVINO: "openvino_genai", TRTLLM: "tensorrt_llm"}
CHECKPOINT = "checkpoint"  # the Hugging Face folder inside a version
CANCEL_CHECK_MS = 100


def files(export: schema.Export, identity: str, context: int) -> dict[str, str]:
    """The repository's text files by path; ``context`` is the model's, in tokens."""
    name = export.model_name
    found = {f"{name}/1/{path}": text for path, text in code(export.target).items()}
    parameters = {"max_new_tokens": str(export.max_new_tokens)}
    if export.target == CPU_OPENVINO:
        parameters["kv_cache_gb"] = str(export.kv_cache_gb)
    found[f"{name}/config.pbtxt"] = config(name, identity, parameters)
    if export.target == TRTLLM:
        found[f"{name}/1/model.yaml"] = model_yaml(export, context)
    return found


def code(target: str) -> dict[str, str]:
    """The Python of a model: the contract's, and the engine's of the target."""
    folders = (SOURCE / "contract", SOURCE / FOLDERS[target])
    sources = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    if target == CPU_OPENVINO:  # which tokenizes by itself
        sources = [file for file in sources if file.name != "hugging_face.py"]
    return {file.name: file.read_text(encoding="utf-8") for file in sources}


def config(name: str, identity: str, parameters: dict[str, str]) -> str:
    """The contract's ``config.pbtxt``."""
    template = string.Template((SOURCE / "config.pbtxt").read_text(encoding="utf-8"))
    lines = [
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
        for key, value in parameters.items()
    ]
    return template.substitute(model_name=name, identity=identity, parameters="\n".join(lines))


def llm_arguments(export: schema.Export, context: int) -> dict[str, Any]:
    """The arguments of TensorRT-LLM's ``LLM()`` but for the model, the user's own last."""
    serving = export.serving
    cache: dict[str, Any] = {
        "free_gpu_memory_fraction": serving.kv_cache_fraction,
        "enable_block_reuse": serving.kv_cache_reuse,
    }
    if export.kv_cache == "fp8":
        cache["dtype"] = "fp8"
    found: dict[str, Any] = {
        "backend": "pytorch",
        "tensor_parallel_size": serving.tensor,
        "pipeline_parallel_size": serving.pipeline,
        "max_batch_size": serving.max_batch_size,
        "max_num_tokens": serving.max_num_tokens,
        "max_seq_len": serving.max_length or context,
        "enable_chunked_prefill": serving.chunked_prefill,
        "kv_cache_config": cache,
    }
    if serving.speculative:
        found["speculative_config"] = dict(serving.speculative)
    if export.adapters:
        found["enable_lora"] = True
        found["lora_config"] = {"max_lora_rank": serving.max_lora_rank, "max_loras": len(export.adapters)}
    return found | serving.arguments


def model_yaml(export: schema.Export, context: int) -> str:
    """What the llmapi model reads: ``LLM()``'s arguments, and Triton's own."""
    content = {
        "model": CHECKPOINT,
        **llm_arguments(export, context),
        "triton_config": {
            "decoupled": True,
            "max_batch_size": 0,
            "cancellation_check_period_ms": CANCEL_CHECK_MS,
        },
    }
    return yaml.safe_dump(content, sort_keys=False)


def argument_faults(export: schema.Export, context: int) -> list[tuple[str, str]]:
    """What the engine would refuse of its arguments, as (setting, why)."""
    if export.target != TRTLLM:
        return []
    found = []
    for path, why in faults(TENSORRT_LLM, "TorchLlmArgs", llm_arguments(export, context)):
        own = path.split(".")[0] in export.serving.arguments
        setting = "speculative" if path.startswith("speculative_config") and not own else "arguments"
        found.append((f"export.serving.{setting}", f"{path}: {why}"))
    return found
