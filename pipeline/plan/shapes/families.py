"""Which families there are, and who reads their configuration."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.plan.shapes import dense, experts, latent, statespace
from pipeline.plan.shapes.fields import Fields
from pipeline.plan.shapes.shape import Shape

# By ``model_type``, as ``config.json`` has it.
READERS: dict[str, Callable[[Fields], Shape]] = {
    "llama": dense.llama,
    "mistral": dense.mistral,
    "qwen2": dense.qwen2,
    "qwen3": dense.qwen3,
    "gemma": dense.gemma,
    "gemma2": dense.gemma2,
    "gemma3_text": dense.gemma3_text,
    "gemma3": dense.gemma3,
    "mixtral": experts.mixtral,
    "qwen3_moe": experts.qwen3_moe,
    "deepseek_v3": latent.deepseek_v3,
    "mamba2": statespace.mamba2,
    "nemotron_h": statespace.nemotron_h,
    "bamba": statespace.bamba,
}
SUPPORTED = tuple(READERS)
