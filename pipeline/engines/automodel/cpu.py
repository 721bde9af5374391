"""What training on a CPU needs: CUDA calls made harmless, and 4-bit weights kept trainable through.

AutoModel 0.7's recipe class asks the CUDA runtime for the current device while it builds a
model, in three places.  On a machine without CUDA those calls raise before anything is trained.  Nothing
here changes what is computed: the answers go to code paths that move tensors to a device,
and that device becomes the CPU.  ``tests/stages/core/test_cpu_guard.py`` fails when a new
AutoModel no longer needs this.
"""

from __future__ import annotations

from typing import Any


def make_cuda_calls_harmless() -> None:
    """Let AutoModel build models on a CPU; does nothing where CUDA is available."""
    import torch
    from nemo_automodel._transformers import auto_model

    if torch.cuda.is_available() or isinstance(auto_model.torch, _TorchOnCpu):
        return
    torch.cuda.reset_peak_memory_stats = lambda *_, **__: None
    torch.cuda.current_device = lambda: "cpu"
    auto_model.torch = _TorchOnCpu(torch)


class _TorchOnCpu:
    """``torch`` as one module of AutoModel sees it: ``torch.device("cuda", ...)`` is the CPU."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)

    def device(self, kind: Any, *rest: Any) -> Any:
        """The device asked for, or the CPU in place of a CUDA device."""
        if str(kind).startswith("cuda"):
            return self._torch.device("cpu")
        return self._torch.device(kind, *rest)


def keep_four_bit_gradients() -> None:
    """Have bitsandbytes keep 4-bit weights in the layout that gradients go through.

    On processors with AVX-512 BF16 it packs them for inference at the first look at validation data, for good; the
    kernel behind that has no backward pass, and layers below would learn from nothing.
    """
    from bitsandbytes.nn import modules

    modules.has_avx512bf16 = lambda: False
