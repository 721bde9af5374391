"""What a training stage publishes: a Hugging Face folder, or a PEFT adapter over one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from pipeline.schema import Align, Lora, Model, Train
from pipeline.stages.step import Step, write_json


def new_model(settings: Model, tokenizer: Any, seed: int, folder: Path) -> None:
    """Write a freshly initialised Llama of the recipe's shape as a Hugging Face folder (fp32)."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        max_position_embeddings=settings.context,
        rope_theta=settings.rope_theta,
        tie_word_embeddings=settings.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=settings.initializer_range,
    )
    model = LlamaForCausalLM(config)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    rope = {"rope_theta": settings.rope_theta}
    # transformers 5 keeps the rotary base under rope_parameters; 4.57 reads rope_theta.
    plain = json.loads((part / "config.json").read_text(encoding="utf-8"))
    write_json(part / "config.json", {**plain, **rope})
    part.rename(folder)


def publish_trained(
    step: Step, settings: Train | Align, model: Any, *, start: Path, tokenizer: Any, parent: str
) -> None:
    """Publish what fine-tuning or alignment made of the ``parent`` stage's model."""
    if settings.peft == "lora":
        publish_adapter(step, model, settings.lora, parent)
    else:
        publish_full(step, model, start, tokenizer)


def publish_full(step: Step, model: Any, start: Path, tokenizer: Any) -> None:
    """Publish all weights (fp32 safetensors) with the configuration that training started from."""
    from safetensors.torch import save_file

    folder = step.output / "model"
    folder.mkdir(exist_ok=True)
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    weights = {
        name: tensor.detach().to("cpu").contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    # A base model's own precision must not make a reader round what was trained in fp32.
    write_json(folder / "config.json", {**config, "dtype": "float32", "torch_dtype": "float32"})
    ends = [tokenizer.eos_token_id]
    if tokenizer.bos_token_id is not None:
        ends.append(tokenizer.bos_token_id)
    generation = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}
    write_json(folder / "generation_config.json", {"bos_token_id": tokenizer.bos_token_id, **generation})
    write_json(step.output / "model.json", {"kind": "full", "path": "model"})


def publish_adapter(step: Step, model: Any, lora: Lora, parent: str) -> None:
    """Publish the adapter's weights in PEFT's layout; ``parent`` is the stage below it."""
    from safetensors.torch import save_file

    folder = step.output / "adapter"
    folder.mkdir(exist_ok=True)
    weights = {
        f"base_model.model.{name}": tensor.detach().to("cpu").contiguous()
        for name, tensor in model.state_dict().items()
        if ".lora_" in name
    }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in weights})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": targets,
        "bias": "none",
        "base_model_name_or_path": parent,
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)
    write_json(step.output / "model.json", {"kind": "adapter", "path": "adapter", "parent": parent})
