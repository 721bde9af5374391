"""The checkpoint that ``trtllm-build`` reads (TensorRT-LLM <= 1.2), and its way back to Hugging Face's weights.

    config.json             the architecture, rotary base and scaling, the mapping onto ranks
    rankN.safetensors       the weights of one GPU

Each rank holds its share: of query heads, of key and value heads (one head on several ranks where there are
fewer heads than ranks), of the feed-forward width and of the vocabulary, padded to a multiple of the ranks.
Query, key and value are one matrix; ``mlp.fc`` is Hugging Face's ``gate_proj`` and ``mlp.gate`` its ``up_proj``.

NVIDIA Model Optimizer writes it (until 0.48; TensorRT-LLM removed the engines that it is for in 2026).
:func:`rebuild` puts the shares together again, so that what was cut up can be compared with what there was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SCALES = (
    "weights_scaling_factor",
    "activation_scaling_factor",
    "prequant_scaling_factor",
    "kv_cache_scaling_factor",
)


def write(model: Any, folder: Path, tensor: int) -> None:
    """Write the checkpoint of a Llama (bf16, or as Model Optimizer has quantised it) for ``tensor`` GPUs.

    Raises ``ValueError`` where the rotary settings did not survive, ``InputError`` for what cannot be cut so.
    """
    from modelopt.torch.export import export_tensorrt_llm_checkpoint

    from pipeline.stages.step import InputError

    try:
        export_tensorrt_llm_checkpoint(
            model, "llama", torch.bfloat16, export_dir=folder, inference_tensor_parallel=tensor
        )
    except NotImplementedError as error:
        raise InputError(
            f"export.serving.tensor: Model Optimizer cannot cut this checkpoint over {tensor} GPUs: {error}"
        ) from error
    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    for fault in rotary_faults(said, model.config.to_dict()):
        raise ValueError(fault)


def rotary_faults(written: dict[str, Any], config: dict[str, Any]) -> list[str]:
    """Where the checkpoint's rotary embedding is not the model's.

    Under transformers 5, which keeps base and scaling in ``rope_parameters``, Model Optimizer finds neither and
    writes none, so that the engine would take 10,000 and no scaling.
    """
    given = config.get("rope_parameters") or {}
    base = config.get("rope_theta", given.get("rope_theta", 10000.0))
    scaling = config.get("rope_scaling") or (
        given if given.get("rope_type", "default") != "default" else None
    )
    faults = []
    if written.get("rotary_base") != base:
        faults.append(f"the checkpoint's rotary_base is {written.get('rotary_base')}, the model's {base}")
    for name, value in (scaling or {}).items():
        kept = (written.get("rotary_scaling") or {}).get(name)
        if name not in ("rope_theta", "type") and kept != value:
            faults.append(f"the checkpoint's rotary_scaling has {name} {kept}, the model {value}")
    return faults


def rebuild(folder: Path) -> dict[str, Tensor]:
    """Hugging Face's weights by name, from all ranks; quantised ones as fp32, others as they were.

    Raises ``ValueError`` where ranks contradict one another about what they share.
    """
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = config["mapping"]["tp_size"]
    if config["mapping"]["world_size"] != size:
        raise ValueError(f"{folder}: cut over layers too (pipeline); only tensor parallelism can be read")
    ranks = [_dequantised(load_file(folder / f"rank{rank}.safetensors")) for rank in range(size)]
    names = {name for rank in ranks for name in rank}
    if any(set(rank) != names for rank in ranks):
        raise ValueError(f"{folder}: the ranks do not hold the same tensors")
    found: dict[str, Tensor] = {}
    vocabulary = config["vocab_size"]
    for name in sorted(names):
        parts = [rank[name] for rank in ranks]
        if name == "transformer.vocab_embedding.weight":
            found["model.embed_tokens.weight"] = torch.cat(parts)[:vocabulary]
        elif name == "lm_head.weight":
            found[name] = torch.cat(parts)[:vocabulary]
        elif name == "transformer.ln_f.weight":
            found["model.norm.weight"] = _shared(name, parts)
        else:
            layer, part = name.removeprefix("transformer.layers.").split(".", 1)
            found.update(
                {f"model.layers.{layer}.{end}": whole for end, whole in _layer(part, parts, config).items()}
            )
    return found


def _layer(part: str, parts: list[Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """The Hugging Face weights that one tensor of a layer holds, by the end of their name."""
    module, kind = part.rsplit(".", 1)
    if module == "attention.qkv":
        return {
            f"self_attn.{name}_proj.{kind}": whole
            for name, whole in zip("qkv", _attention(part, parts, config), strict=True)
        }
    if module not in PLACES:
        raise ValueError(f"{part}: no Llama has such a weight")
    name, join = PLACES[module]
    return {f"{name}.{kind}": join(part, parts)}


def _attention(part: str, parts: list[Tensor], config: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of all heads; a key head that several ranks hold must be the same on each."""
    head, size = config["head_size"], len(parts)
    heads, kept = config["num_attention_heads"] // size, max(1, config["num_key_value_heads"] // size)
    copies = max(1, size // config["num_key_value_heads"])
    cut = [each.split([heads * head, kept * head, kept * head]) for each in parts]
    query, key, value = zip(*cut, strict=True)
    joined = []
    for kind, shares in (("key", key), ("value", value)):
        for first in range(0, size, copies):
            _shared(f"{part} ({kind})", list(shares[first : first + copies]))
        joined.append(torch.cat(shares[::copies]))
    return torch.cat(query), joined[0], joined[1]


def _shared(name: str, parts: list[Tensor]) -> Tensor:
    if any(not torch.equal(parts[0], part) for part in parts[1:]):
        raise ValueError(f"{name} is not the same on all ranks that share it")
    return parts[0]


def _rows(_: str, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=0)


def _columns(_: str, parts: list[Tensor]) -> Tensor:
    return torch.cat(parts, dim=1)


PLACES: dict[str, tuple[str, Callable[[str, list[Tensor]], Tensor]]] = {
    "attention.dense": ("self_attn.o_proj", _columns),
    "mlp.fc": ("mlp.gate_proj", _rows),
    "mlp.gate": ("mlp.up_proj", _rows),
    "mlp.proj": ("mlp.down_proj", _columns),
    "input_layernorm": ("input_layernorm", _shared),
    "post_layernorm": ("post_attention_layernorm", _shared),
}


def _dequantised(rank: dict[str, Tensor]) -> dict[str, Tensor]:
    """One rank's weights: codes times their scales, and times the factors that inputs are divided by; scales left out."""
    found = {}
    for name, tensor in rank.items():
        module, _, kind = name.rpartition(".")
        if kind in SCALES:
            continue
        if kind == "weight" and tensor.dtype in (torch.float8_e4m3fn, torch.int8):
            scale = rank.get(f"{module}.weights_scaling_factor")
            if scale is None:
                raise ValueError(f"{name} has no scale")
            rows = scale.float()
            tensor = tensor.float() * (rows if rows.numel() == 1 else rows.reshape(-1, 1))
            factors = rank.get(f"{module}.prequant_scaling_factor")
            if factors is not None:
                tensor = tensor * factors.float().reshape(1, -1)
        found[name] = tensor
    return found
