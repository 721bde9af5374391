"""What the serving models ask of a model's shape and of a GPU; :mod:`pipeline.plan.shapes` and ``hardware`` have both.

Only what is read here is named, so that a test or another program can bring its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Shape(Protocol):
    """A decoder as the planner sees it: parameters, cache and FLOPs, counted from its configuration."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def width(self) -> int: ...
    @property
    def depth(self) -> int: ...
    @property
    def context(self) -> int | None: ...
    @property
    def heads(self) -> int: ...
    @property
    def kv_heads(self) -> int: ...
    @property
    def parameters(self) -> int: ...
    @property
    def head_parameters(self) -> int: ...
    @property
    def layer_parameters(self) -> int: ...
    @property
    def active_layer_parameters(self) -> int: ...

    def cache_bytes(self, tokens: int, bytes_per_value: float) -> float:
        """Bytes that a sequence of so many tokens leaves in the cache of all layers."""

    def attention_flops(self, length: int, causal: bool = True) -> float:
        """Forward FLOP a token of the attention itself (scores and values), of all layers."""


class Gpu(Protocol):
    """A GPU's published figures: GB, GB/s, dense TFLOP/s by precision, and how many of them are joined."""

    @property
    def name(self) -> str: ...
    @property
    def memory_gb(self) -> float: ...
    @property
    def memory_bytes(self) -> float: ...
    @property
    def bandwidth_gb_s(self) -> float: ...
    @property
    def tflops(self) -> Mapping[str, float]: ...
    @property
    def nvlink_gpus(self) -> int: ...
    @property
    def gpus_per_node(self) -> int: ...

    def link(self, gpus: int) -> float:
        """Bytes a second, in one direction, between so many GPUs of one machine."""
