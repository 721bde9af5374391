"""What a training stage publishes: a Hugging Face folder, or a PEFT adapter over one."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.conversations.documents import answer_ends
from pipeline.schema import Model, Optimisation
from pipeline.stages.step import Step, write_json

if TYPE_CHECKING:
    from pipeline.engines.automodel.session import Run

SHARD_BYTES = 5 << 30


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
    # What transformers puts into it is nobody's choice: what is trained from here gets its own.
    (part / "generation_config.json").unlink()
    rope = {"rope_theta": settings.rope_theta}
    # transformers 5 keeps the rotary base under rope_parameters; 4.57 reads rope_theta.
    plain = json.loads((part / "config.json").read_text(encoding="utf-8"))
    write_json(part / "config.json", {**plain, **rope})
    part.rename(folder)


def publish(step: Step, settings: Optimisation, model: Any, work: Run) -> None:
    """Publish what was trained: an adapter over the ``parent`` stage's model, or all weights.

    Every process of a run calls this, for a sharded weight is put together by all of them;
    process 0 writes.
    """
    if getattr(settings, "peft", "none") != "none":
        publish_adapter(step, settings, model, str(work.parent))
    else:
        _publish_full(step, settings, model, Path(work.model), Path(work.tokenizer))


def whole_weights(model: Any, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Any]]:
    """Name and value of each weight that is wanted, one at a time, on the CPU.

    Names are those of the plain Hugging Face model, whatever wraps it.  A weight that is
    sharded over processes is gathered, so all of them must go through all of the weights.
    """
    from torch.distributed.checkpoint.state_dict import get_model_state_dict
    from torch.distributed.tensor import DTensor

    for name, tensor in get_model_state_dict(model).items():
        if wanted(name):
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            yield name, whole.detach().to("cpu").contiguous()


def _publish_full(
    step: Step, settings: Optimisation, model: Any, start: Path, tokenizer_folder: Path
) -> None:
    """All weights as safetensors, in shards where they are large, with the configuration trained from."""
    import torch
    from transformers import PreTrainedTokenizerFast

    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    tied = bool(config.get("tie_word_embeddings", False))
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[settings.save_precision]
    folder = step.output / "model"
    weights = whole_weights(model, lambda name: not (tied and name == "lm_head.weight"))
    if not _write_shards(folder, ((name, tensor.to(kind)) for name, tensor in weights)):
        return
    # The base model's own precision must not make a reader round what was trained.
    name = str(kind).removeprefix("torch.")
    write_json(folder / "config.json", {**config, "dtype": name, "torch_dtype": name})
    own = start / "generation_config.json"
    if own.exists():  # a base's end tokens and sampling are as much its own as its weights
        shutil.copyfile(own, folder / own.name)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
        ends = [tokenizer.eos_token_id, *(answer_ends(tokenizer) - {tokenizer.eos_token_id})]
        generation = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id, "do_sample": False}
        write_json(folder / own.name, {"bos_token_id": tokenizer.bos_token_id, **generation})
    write_json(step.output / "model.json", {"kind": "full", "path": "model"})


def _write_shards(folder: Path, weights: Iterator[tuple[str, Any]]) -> bool:
    """``model.safetensors``, or shards of ``SHARD_BYTES`` and their index; whether this process wrote."""
    from safetensors.torch import save_file

    writes = os.environ.get("RANK", "0") == "0"
    shards: list[list[str]] = []
    shard: dict[str, Any] = {}
    held = total = 0

    def close() -> None:
        save_file(shard, folder / f"part-{len(shards):05d}.safetensors", metadata={"format": "pt"})
        shards.append(list(shard))
        shard.clear()

    if writes:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    for name, tensor in weights:  # to the end in every process: gathering takes all of them
        if not writes:
            continue
        size = tensor.numel() * tensor.element_size()
        if shard and held + size > SHARD_BYTES:
            close()
            held = 0
        shard[name] = tensor
        held, total = held + size, total + size
    if not writes:
        return False
    close()
    if len(shards) == 1:
        (folder / "part-00000.safetensors").rename(folder / "model.safetensors")
        return True
    places: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"part-{number:05d}.safetensors").rename(folder / file)
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    write_json(folder / "model.safetensors.index.json", index)
    return True


def publish_adapter(step: Step, settings: Any, model: Any, parent: str) -> None:
    """The adapter's weights in PEFT's layout; ``parent`` is the stage below it."""
    from safetensors.torch import save_file

    parts = (".lora_A.", ".lora_B.", ".lora_magnitude")
    weights = {
        f"base_model.model.{name.replace('.lora_magnitude', '.lora_magnitude_vector')}": tensor.float()
        for name, tensor in whole_weights(model, lambda name: any(part in name for part in parts))
    }
    if os.environ.get("RANK", "0") != "0":
        return
    folder = step.output / "adapter"
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.rsplit(".lora_", 1)[0].rsplit(".", 1)[-1] for name in weights})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": settings.lora.rank,
        "lora_alpha": settings.lora.alpha,
        "lora_dropout": settings.lora.dropout,
        "use_dora": settings.peft == "dora",
        "target_modules": targets,
        "bias": "none",
        "base_model_name_or_path": parent,
        "inference_mode": True,
    }
    write_json(folder / "adapter_config.json", config)
    write_json(step.output / "model.json", {"kind": "adapter", "path": "adapter", "parent": parent})
