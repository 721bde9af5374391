"""A model's LoRA layers: how they start, and the model without them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from pipeline import lora_targets
from pipeline.stages.step import InputError

WRAPPERS = ("module.", "_checkpoint_wrapped_module.")  # DDP's, and that of recomputed layers


def adapters(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and module of each LoRA layer; the names are the same whatever wraps the model."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_B") and hasattr(module, "scale"):
            for wrapper in WRAPPERS:
                name = name.replace(wrapper, "")
            yield name, module


def has_adapters(model: Any) -> bool:
    """Whether adapters are trained, and not the weights."""
    return any(True for _ in adapters(model))


def require_targets(model: Any, targets: list[str], section: str) -> None:
    """Raise :class:`InputError` for a target that no adapter of the model comes from, whatever its family.

    What can be known of a Llama is refused with the recipe (:mod:`pipeline.lora_targets`).
    """
    adapted = [name for name, _ in adapters(model)]
    for target in targets:
        if not any(lora_targets.names(target, name) for name in adapted):
            linear = sorted(
                {
                    name.rpartition(".")[2]
                    for name, m in model.named_modules()
                    if isinstance(m, torch.nn.Linear)
                }
            )
            raise InputError(
                f"{section}.lora.targets: {target!r} names no linear layer that can have an adapter; the model's are "
                f"{', '.join(linear)}"
            )


@torch.no_grad()
def start_alike(model: Any, seed: int) -> None:
    """Give every adapter the start that it has in any layout: its own random numbers (Glorot and Bengio 2010).

    AutoModel draws them where a layer is built, so that shards of FSDP2 and of tensor parallelism would start
    elsewhere than the whole.
    """
    for name, module in adapters(model):
        weight = module.lora_A.weight
        own = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
        draw = torch.Generator().manual_seed(int.from_bytes(own[:7], "big"))
        start = torch.nn.init.xavier_normal_(torch.empty(weight.shape), generator=draw)
        start = start.to(device=weight.device, dtype=weight.dtype)
        if isinstance(weight, DTensor):
            start = distribute_tensor(start, weight.device_mesh, weight.placements)
        weight.copy_(start)


@contextmanager
def adapters_off(model: Any) -> Iterator[None]:
    """The model without its adapters, for as long as the context lasts."""
    adapted = [module for _, module in adapters(model)]
    before = [(module.scale, getattr(module, "use_dora", None)) for module in adapted]
    for module in adapted:
        module.scale = 0.0
        if getattr(module, "use_dora", False):
            module.use_dora = False  # its learned magnitude replaces the weight's norm
    try:
        yield
    finally:
        for module, (scale, dora) in zip(adapted, before, strict=True):
            module.scale = scale
            if dora is not None:
                module.use_dora = dora
