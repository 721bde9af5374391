"""What the tests of serving share: a command line of the verbs alone, and small stand-ins for a shape and a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from pipeline.cli import guarded
from pipeline.plan.serving import commands


@dataclasses.dataclass(frozen=True)
class FlatShape:
    """A dense decoder whose numbers are round, so that a test can work them out in its head."""

    name: str = "flat"
    family: str = "llama"
    width: int = 1000
    depth: int = 10
    context: int | None = 10_000
    heads: int = 8
    kv_heads: int = 4
    parameters: int = 12_000_000_000
    head_parameters: int = 1_000_000_000
    layer_parameters: int = 10_000_000_000
    active_layer_parameters: int = 10_000_000_000
    cached: float = 1000.0  # values a token

    def cache_bytes(self, tokens: int, bytes_per_value: float) -> float:
        return self.cached * tokens * bytes_per_value

    def attention_flops(self, length: int, causal: bool = True) -> float:
        return 1e6 * length


@dataclasses.dataclass(frozen=True)
class RoundGpu:
    """100 GiB, 1 TB/s, 100 TFLOP/s in bf16, a link of 100 GB/s."""

    name: str = "round"
    memory_gb: float = 100.0
    bandwidth_gb_s: float = 1000.0
    tflops: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: MappingProxyType({"bf16": 100.0, "fp8": 200.0}), hash=False
    )
    nvlink_gpus: int = 8
    gpus_per_node: int = 8

    @property
    def memory_bytes(self) -> float:
        return 0.99 * self.memory_gb * 2**30

    def link(self, gpus: int) -> float:
        return 100e9


class Verbs:
    """``lifecycle scale`` with nothing but the verbs of serving."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self.captured = captured
        self.parser = argparse.ArgumentParser(prog="lifecycle scale")
        commands.add(self.parser.add_subparsers(required=True))

    def __call__(self, *words: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        options = self.parser.parse_args(words)
        status = guarded(options.call, options)
        out, error = self.captured.readouterr()
        return status, out, error

    def json(self, *words: str) -> dict[str, Any]:
        """The answer of a call that succeeds, with its numbers by name."""
        status, out, error = self(*words, "--json")
        assert status == 0, error
        found: dict[str, Any] = json.loads(out)
        found["by name"] = {number["name"]: number["value"] for number in found["numbers"]}
        return found


def verbs_fixture(capsys: pytest.CaptureFixture[str]) -> Verbs:
    """A fixture's body."""
    return Verbs(capsys)
