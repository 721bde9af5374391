"""The Triton model repository of an export, as far as it is text: written from settings alone.

Everything but weights and tokenizer is here, so that it can be written and checked on any machine::

    <model_name>/config.pbtxt        one client contract on every target (``deploy/triton/config.pbtxt``)
    <model_name>/1/*.py              the contract's Python and the target's engine (``deploy/triton/``)
    <adapter>/...                    cpu-openvino: the same for each merged variant
    <model_name>/1/model.yaml        trtllm: arguments of ``LLM()`` and ``triton_config``
    <model_name>-vllm/               vllm: Triton's own vLLM backend with ``model.json``, behind the contract
    <model_name>-engine/             trtllm-engine: Triton's TensorRT-LLM backend, and ``build.sh`` for its engines

What the exporter adds: ``1/openvino`` or ``1/checkpoint``, and ``1/adapters``.
"""

from __future__ import annotations

import string
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from pipeline import schema, strict_json
from pipeline.serving import targets
from pipeline.serving.engines import TENSORRT_LLM, VLLM, faults

SOURCE = Path(__file__).resolve().parents[2] / "deploy" / "triton"
CONVERSATIONS = Path(__file__).resolve().parents[1] / "conversations"  # as training uses it
FOLDERS = {
    targets.CPU_OPENVINO: "openvino_genai",
    targets.TRTLLM: "tensorrt_llm",
    targets.TRTLLM_ENGINE: "trtllm_engine",
    targets.VLLM: "vllm",
}
# Files of the contract that only some engines use.
NEEDED_BY = {
    "beside.py": (targets.TRTLLM_ENGINE, targets.VLLM),
}
# The model behind the contract's: its name goes on so.
BEHIND = {targets.VLLM: "-vllm", targets.TRTLLM_ENGINE: "-engine"}
MOUNT = "/models"  # where the containers see the repository: vLLM's arguments need whole paths
CHECKPOINT = "checkpoint"  # the Hugging Face folder inside a version
CANCEL_CHECK_MS = 100
# TensorRT-LLM's names of the layers that an adapter of a Llama may change; two adapters or more need them told.
LORA_MODULES = ("attn_q", "attn_k", "attn_v", "attn_dense", "mlp_h_to_4h", "mlp_gate", "mlp_4h_to_h")


def files(export: schema.Export, identity: str, context: int) -> dict[str, str]:
    """The repository's text files by path; ``context`` is what is served of the model's (:func:`served_context`), in tokens."""
    found: dict[str, str] = {}
    length = min(context, export.serving.max_length or context)
    parameters = {"max_new_tokens": str(export.max_new_tokens), "context": str(length)}
    if export.target == targets.CPU_OPENVINO:
        parameters["kv_cache_gb"] = str(export.kv_cache_gb)
    elif export.target == targets.TRTLLM_ENGINE:
        parameters["most_requests"] = str(export.serving.max_batch_size)
    for name in fronts(export):
        found |= {f"{name}/1/{path}": text for path, text in code(export.target).items()}
        found[f"{name}/config.pbtxt"] = config(name, identity, parameters)
    if export.target == targets.TRTLLM:
        found[f"{export.model_name}/1/model.yaml"] = model_yaml(export, context)
    elif export.target == targets.VLLM:
        found |= vllm(export, context)
    elif export.target == targets.TRTLLM_ENGINE:
        found |= engine(export, context)
    return found


def served_context(export: schema.Export, trained_on: int | None, known: int) -> int:
    """Tokens of a prompt and its answer that are served.

    ``export.serving.max_length`` where the recipe says one; else what the model was trained on here (``trained_on``:
    ``model.context``, or None for a base as it is), since longer prompts are answered by chance.  Never more than ``known``,
    which the model's positions were made for.
    """
    return min(known, export.serving.max_length or trained_on or known)


def fronts(export: schema.Export) -> list[str]:
    """The models of the repository that have the client contract, the base first."""
    merged = export.adapters if targets.TARGETS[export.target].adapters == targets.MERGED else ()
    return [export.model_name, *merged]


def models(export: schema.Export) -> dict[str, dict[str, str]]:
    """The names that a client may ask for: Triton's model, and what to give it as ``lora`` ("": nothing)."""
    found = {name: {"model": name, "lora": ""} for name in fronts(export)}
    for adapter in export.adapters:
        found.setdefault(adapter, {"model": export.model_name, "lora": adapter})
    return found


def code(target: str) -> dict[str, str]:
    """The Python of a model: the contract's, the engine's of the target, and what turns conversations into tokens."""
    folders = (SOURCE / "contract", SOURCE / FOLDERS[target])
    sources = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    sources = [file for file in sources if target in NEEDED_BY.get(file.name, (target,))]
    found = {file.name: file.read_text(encoding="utf-8") for file in sources}
    shared = sorted(CONVERSATIONS.glob("*.py"))
    return found | {f"{CONVERSATIONS.name}/{file.name}": file.read_text(encoding="utf-8") for file in shared}


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
        # As NVIDIA's guides have it (docs/published-settings.md, "Serving"); by itself it stops at batches of 128.
        "cuda_graph_config": {"enable_padding": True},
    }
    if "batch_sizes" not in (serving.arguments.get("cuda_graph_config") or {}):  # which say the largest, too
        found["cuda_graph_config"]["max_batch_size"] = serving.max_batch_size
    if serving.speculative:
        found["speculative_config"] = dict(serving.speculative)
    if export.adapters:
        found["enable_lora"] = True
        found["lora_config"] = {
            "max_lora_rank": serving.max_lora_rank,
            "max_loras": len(export.adapters),
            "lora_target_modules": list(LORA_MODULES),
        }
    return merged(found, serving.arguments)


def merged(given: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` laid over ``given``, mapping by mapping."""
    found = dict(given)
    for key, value in own.items():
        inner = found.get(key)
        found[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return found


def owned(export: schema.Export, context: int) -> set[str]:
    """Arguments of the engine that have settings of their own, or that the contract rests on."""
    plain = replace(export, serving=replace(export.serving, arguments={}))
    written = vllm_arguments if export.target == targets.VLLM else llm_arguments
    known = written(plain, context) if export.target in (targets.VLLM, targets.TRTLLM) else {}
    return {"model", "tokenizer", *(key for key, value in known.items() if not isinstance(value, dict))}


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


def vllm_arguments(export: schema.Export, context: int) -> dict[str, Any]:
    """The arguments of vLLM's engine, the user's own last."""
    serving = export.serving
    found: dict[str, Any] = {
        "model": f"{MOUNT}/{export.model_name}-vllm/1/{CHECKPOINT}",
        "trust_remote_code": False,
        "tensor_parallel_size": serving.tensor,
        "pipeline_parallel_size": serving.pipeline,
        "gpu_memory_utilization": serving.kv_cache_fraction,
        "enable_prefix_caching": serving.kv_cache_reuse,
        "enable_chunked_prefill": serving.chunked_prefill,
        "max_num_seqs": serving.max_batch_size,
        "max_num_batched_tokens": serving.max_num_tokens,
        "max_model_len": serving.max_length or context,
        "disable_log_stats": False,  # the backend's metrics come from them
        "enable_log_requests": False,  # prompts are nobody's business
    }
    if export.kv_cache == "fp8":
        found["kv_cache_dtype"] = "fp8"
    if export.adapters:
        found |= {
            "enable_lora": True,
            "max_loras": len(export.adapters),
            "max_lora_rank": serving.max_lora_rank,
        }
    return merged(found, serving.arguments)


def vllm(export: schema.Export, context: int) -> dict[str, str]:
    """Triton's vLLM backend as a model of its own, which the contract's model asks."""
    name = f"{export.model_name}-vllm"
    found = {
        f"{name}/config.pbtxt": string.Template(
            (SOURCE / "vllm" / "backend.pbtxt").read_text(encoding="utf-8")
        ).substitute(model_name=name),
        f"{name}/1/model.json": strict_json.dumps(vllm_arguments(export, context), indent=2) + "\n",
    }
    if export.adapters:
        places = {adapter: f"{MOUNT}/{name}/1/adapters/{adapter}" for adapter in export.adapters}
        found[f"{name}/1/multi_lora.json"] = strict_json.dumps(places, indent=2) + "\n"
    return found


def engine(export: schema.Export, context: int) -> dict[str, str]:
    """Triton's TensorRT-LLM backend as a model of its own, and the line that builds its engines."""
    name, serving = f"{export.model_name}-engine", export.serving
    template = string.Template((SOURCE / "trtllm_engine" / "backend.pbtxt").read_text(encoding="utf-8"))
    return {
        f"{name}/config.pbtxt": template.substitute(
            model_name=name,
            engine_dir=f"{MOUNT}/{name}/1/engine",
            kv_cache_fraction=serving.kv_cache_fraction,
            kv_cache_reuse=str(serving.kv_cache_reuse).lower(),
            chunked_prefill=str(serving.chunked_prefill).lower(),
            max_batch_size=serving.max_batch_size,
        ),
        f"{name}/1/build.sh": build_line(export, context),
    }


def build_line(export: schema.Export, context: int) -> str:
    """A shell script that builds the engines beside it, inside the pinned container."""
    serving = export.serving
    length = serving.max_length or context
    words = {
        "checkpoint_dir": CHECKPOINT,
        "output_dir": "engine",
        "gemm_plugin": "auto",
        "max_batch_size": serving.max_batch_size,
        "max_input_len": length,
        "max_seq_len": length,
        "max_num_tokens": serving.max_num_tokens,
        "use_paged_context_fmha": "enable",
        "workers": serving.tensor,
    }
    options = " \\\n  ".join(f"--{key} {value}" for key, value in words.items())
    return (
        "#!/bin/sh\n"
        "# Run inside the container of TensorRT-LLM <= 1.2, on GPUs of the kind that will serve.\n"
        f'set -eu\ncd "$(dirname "$0")"\ntrtllm-build \\\n  {options}\n'
    )


def argument_faults(export: schema.Export, context: int) -> list[tuple[str, str]]:
    """What the engine would refuse of its arguments, as (setting, why)."""
    if export.target == targets.TRTLLM:
        said = faults(TENSORRT_LLM, "TorchLlmArgs", llm_arguments(export, context))
    elif export.target == targets.VLLM:
        said = faults(VLLM, "AsyncEngineArgs", vllm_arguments(export, context))
    else:
        return []
    found = []
    for path, why in said:
        own = path.split(".")[0] in export.serving.arguments
        setting = "speculative" if path.startswith("speculative_config") and not own else "arguments"
        found.append((f"export.serving.{setting}", f"{path}: {why}"))
    return found


def checkpoint_place(export: schema.Export) -> str:
    """Where in the repository the Hugging Face folder of a GPU target lies; adapters lie beside it."""
    return f"{export.model_name}{BEHIND.get(export.target, '')}/1"
