"""What AutoModel 0.7 does to a model on a single GPU without asking, undone.

Its DDP strategy, in one process on CUDA, casts whatever it is given to bf16, so that
``precision: bf16`` (autocast over fp32 weights) and ``fp32`` would quietly become training in
bf16 weights with bf16 optimiser states, where small updates round to nothing.  Several
processes, and FSDP2, keep what they are given.  Not executed here: no GPU; a test holds what is
asked of the model.
"""

from __future__ import annotations

from typing import Any


def keep_weights(kind: str) -> None:
    """Let weights stay in ``kind`` (``float32``, ``bfloat16``) on one GPU, for the models built from here on."""
    import torch
    from nemo_automodel.components.distributed import ddp

    ddp.torch = _TorchWith(torch, getattr(torch, kind))


class _TorchWith:
    """``torch`` as one module of AutoModel sees it: its ``bfloat16`` is the precision that was asked for."""

    def __init__(self, torch: Any, kind: Any) -> None:
        self._torch, self.bfloat16 = torch, kind

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)
