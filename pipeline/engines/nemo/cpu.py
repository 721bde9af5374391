"""What lets NeMo convert checkpoints and build its objects on a machine without CUDA.

nemo-toolkit 2.7.3 and Megatron Core 0.15.3 call CUDA and Transformer Engine on the way, also where
all the work is the CPU's.  Nothing in here computes anything: every stand-in is for a call whose
effect is none on a CPU, or for a name that differs without Transformer Engine.  A test fails when
one of them is no longer needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

# Transformer Engine fuses a layer norm into the linear layer after it.  Megatron's own layers keep
# the two apart and write the fused names into checkpoints all the same (sharded_state_dict_keys_map
# of gpt_layer_specs.py), so that only NeMo's mapping has to be told.
FUSED_NORMS = {
    "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
    "mlp.linear_fc1.layer_norm_weight": "pre_mlp_layernorm.weight",
}


@contextlib.contextmanager
def without_cuda() -> Iterator[None]:
    """Within this, NeMo's connectors and configurations work on a CPU; with CUDA it changes nothing."""
    import torch

    if torch.cuda.is_available():
        yield
        return
    with contextlib.ExitStack() as stack:
        for target, name, value in stand_ins():
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def stand_ins() -> list[tuple[Any, str, Any]]:
    """What is replaced: the object, the attribute's name, and what stands in for it."""
    import torch
    from megatron.core.models.common.embeddings import rope_utils
    from nemo.collections.llm.gpt.model.base import GPTConfig
    from nemo.collections.llm.peft import lora
    from nemo.collections.llm.peft import utils as peft_utils
    from nemo.lightning import io
    from nemo.lightning.io import pl

    configure, transform = GPTConfig.configure_model, io.apply_transforms

    def configure_unfused(self: Any, *arguments: Any, **options: Any) -> Any:
        # Kernels that only Transformer Engine has.  The written configuration is what the object
        # was made from, so a cluster that reads the checkpoint uses them.
        self.persist_layer_norm = self.apply_rope_fusion = False
        return configure(self, *arguments, **options)

    def apply_unfused(source: Any, target: Any, mapping: dict[str, str], *rest: Any, **options: Any) -> Any:
        names = {_unfused(key): _unfused(value) for key, value in mapping.items()}
        return transform(source, target, names, *rest, **options)

    return [
        # A configuration with fused rotary embedding refuses to exist without the kernel.
        (rope_utils, "fused_apply_rotary_pos_emb", _absent),
        (GPTConfig, "configure_model", configure_unfused),
        (io, "apply_transforms", apply_unfused),
        # It takes Transformer Engine for installed wherever Megatron's module about it can be imported.
        (peft_utils, "HAVE_TE", False),
        # It compares every layer with Transformer Engine's without asking for it.
        (lora, "te", SimpleNamespace(Linear=_absent)),
        (pl, "_fix_tensors_device", lambda checkpoint: checkpoint),
        (torch.cuda, "synchronize", lambda *_: None),
        (torch.cuda, "current_device", lambda: torch.device("cpu")),
        (torch.cuda, "Stream", lambda *_, **__: None),
    ]


def _unfused(name: str) -> str:
    for fused, plain in FUSED_NORMS.items():
        if name.endswith(fused):
            return name.removesuffix(fused) + plain
    return name


def _absent(*_: Any, **__: Any) -> Any:
    raise RuntimeError("this is Transformer Engine's, which is not installed here")
