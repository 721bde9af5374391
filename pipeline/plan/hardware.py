"""GPUs that a plan can be made for, and how many there are.

    gpu("h100").flops("bf16")            # 989e12, dense
    parse("2x8xH100-80GB").count         # 16

What is known of each kind stands in ``configs/gpus.yaml``, or in the file that LIFECYCLE_GPUS names.  Figures are the
makers' peaks: how much of them real work reaches is for the models of throughput to say.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given
from pipeline.positions import table

TABLE = Path(__file__).resolve().parents[2] / "configs" / "gpus.yaml"
VARIABLE = "LIFECYCLE_GPUS"
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8", "nvfp4")
GB, GIB = 1e9, 2.0**30
DRIVER = 0.005
CHECKED = ("L40S", "L4", "A40", "A10", "A10G", "T4")  # GDDR6 with error correction
MOST = 1_000_000  # GPUs; more than anyone has in one place, and what a typing error makes

# Numbers of one kind, and the least that makes sense.
NUMBERS = {
    "memory_gb": 0.1,
    "bandwidth_gb_s": 0.1,
    "nvlink_gb_s": 0.0,
    "pcie_gb_s": 0.1,
    "network_gb_s": 0.0,
    "power_w": 1.0,
}
COUNTS = ("nvlink_gpus", "gpus_per_node")
TEXTS = ("compute", "source")
# A kind does not begin like one more number: what is left of 1.5xH100 or 2x2x8xH100 is none.
FLEET = re.compile(
    r"(?:(?:(?P<nodes>\d{1,9})\s*x\s*)?(?P<gpus>\d{1,9})\s*x\s*)?(?P<kind>(?![\d.,]+\s*x)[a-z0-9].*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU, with the units of ``configs/gpus.yaml``, which explains each field."""

    name: str
    memory_gb: float
    bandwidth_gb_s: float
    tflops: Mapping[str, float] = field(hash=False)
    nvlink_gb_s: float
    nvlink_gpus: int
    pcie_gb_s: float
    gpus_per_node: int
    network_gb_s: float
    power_w: float
    compute: str
    source: str
    aliases: tuple[str, ...] = ()
    table: str = field(default="configs/gpus.yaml", compare=False)

    @property
    def memory_bytes(self) -> float:
        """Bytes that a process can have.

        A GPU's memory is its name's figure in GiB, of which the driver keeps some: an 80 GB H100 reports 79.65 GiB, a 141 GB
        H200 140.4 (``nvidia-smi``).  Of GDDR6 with error correction, a sixteenth goes to check bits.
        """
        return self.memory_gb * GIB * (1 - DRIVER) * (15 / 16 if self.name in CHECKED else 1)

    @property
    def bandwidth(self) -> float:
        """Bytes that memory delivers in a second."""
        return self.bandwidth_gb_s * GB

    def flops(self, precision: str) -> float:
        """Dense FLOP/s of matrix products in a precision; :class:`UserError` where it has none."""
        if precision not in self.tflops:
            raise UserError(
                f"{self.name} does not multiply in {precision} ({self.table}); it has: {', '.join(self.tflops)}"
            )
        return self.tflops[precision] * 1e12

    def link(self, gpus: int) -> float:
        """Bytes a second, in one direction, between ``gpus`` of one machine or rack: NVLink's, or else PCIe's."""
        joined = self.nvlink_gb_s > 0 and gpus <= self.nvlink_gpus
        return (self.nvlink_gb_s if joined else self.pcie_gb_s) * GB

    def quantity(self, what: str) -> Quantity:
        """A figure for a derivation: ``memory``, ``bandwidth``, ``nvlink``, ``network``, ``power``, or a precision."""
        figures = {
            "memory": ("memory of a GPU", self.memory_bytes, "B"),
            "bandwidth": ("memory bandwidth of a GPU", self.bandwidth, "B/s"),
            "nvlink": ("NVLink of a GPU, one direction", self.nvlink_gb_s * GB, "B/s"),
            "network": ("network of a GPU", self.network_gb_s * GB, "B/s"),
            "power": ("power of a GPU", self.power_w, "W"),
        }
        if what in figures:
            name, value, unit = figures[what]
        else:
            name, value, unit = f"dense peak in {what}", self.flops(what), "FLOP/s"
        source = f"assumed in {self.table}" if what == "network" else self.source
        return given(f"{self.name}: {name}", value, unit, source)


@dataclass(frozen=True)
class Fleet:
    """``count`` GPUs of one kind, ``per_node`` in each machine (unless given, as many as usual, evenly spread)."""

    count: int
    gpu: Gpu
    per_node: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise UserError(f"{self.count} GPUs of {self.gpu.name}: the number must be from 1 to {MOST:,}")
        if self.per_node == 0:
            nodes = math.ceil(self.count / self.gpu.gpus_per_node)
            object.__setattr__(self, "per_node", max(1, self.count // nodes))
        if self.count % self.per_node:
            raise UserError(
                f"{self.count} GPUs of {self.gpu.name} cannot be spread evenly over machines of {self.gpu.gpus_per_node}: "
                f"say how, as MACHINESxGPUSx{self.gpu.name}"
            )

    @property
    def nodes(self) -> int:
        """Machines."""
        return self.count // self.per_node

    def __str__(self) -> str:
        machines = f" in {self.nodes} machines" if self.nodes > 1 else ""
        return f"{self.count}x{self.gpu.name}{machines}"


def gpu(name: str, path: str | Path | None = None) -> Gpu:
    """The kind of this name or alias, in capitals or not, as people write it or ``nvidia-smi`` does.

    Raises :class:`UserError` for an unknown name, with those that are known, and for mistakes in the table.
    """
    file = _file(path)
    known = kinds(file)
    found = {_plain(word): kind for kind in known.values() for word in (kind.name, *kind.aliases)}
    wanted = found.get(_plain(name))
    if wanted is None:
        raise UserError(f"there is no GPU {name!r} in {file}; there are: {', '.join(known)}")
    return wanted


def parse(text: str, path: str | Path | None = None) -> Fleet:
    """GPUs as one writes them: ``8xH100-80GB``, ``H200`` (one), ``2x8xB200`` (machines x GPUs of each).

    Raises :class:`UserError` for anything else, for none at all, and for a kind that is not known.
    """
    match = FLEET.fullmatch(text.strip())
    if match is None:
        raise UserError(f"GPUs {text!r}: expected NUMBERxKIND, such as 8xH100-80GB, or MACHINESxNUMBERxKIND")
    numbers = [int(match[part]) for part in ("nodes", "gpus") if match[part] is not None]
    if any(not 1 <= number <= MOST for number in numbers):
        raise UserError(f"GPUs {text!r}: the numbers must be from 1 to {MOST:,}")
    kind = gpu(match["kind"], path)
    if len(numbers) == 2:
        return Fleet(numbers[0] * numbers[1], kind, numbers[1])
    return Fleet(numbers[0] if numbers else 1, kind)


def kinds(path: str | Path | None = None) -> dict[str, Gpu]:
    """All kinds of the table, by name.  Raises :class:`UserError` for mistakes in it, with the line and field."""
    file = _file(path)
    try:
        changed = file.stat().st_mtime_ns
    except OSError as error:
        hint = f" ({VARIABLE} names it)" if str(file) == os.environ.get(VARIABLE) else ""
        raise UserError(f"{file}: cannot be read: {error.strerror}{hint}") from None
    return dict(_read(file, changed))


def _file(path: str | Path | None) -> Path:
    return Path(path or os.environ.get(VARIABLE) or TABLE)


def _plain(name: str) -> str:
    """``NVIDIA H100 80GB HBM3`` as ``h100-80gb-hbm3``."""
    return re.sub(r"[\s_-]+", "-", name.strip().lower()).removeprefix("nvidia-")


# -------------------------------------------------------------------------------------------- the table


@lru_cache(maxsize=8)
def _read(file: Path, changed: int) -> Mapping[str, Gpu]:
    """The table as it was at a time, so that a file is read once and a changed one again."""
    content, lines = table(file)
    if not isinstance(content, dict) or not content:
        raise UserError(f"{file}: expected kinds of GPUs, each with its fields, as in {TABLE}")
    found: dict[str, Gpu] = {}
    taken: dict[str, str] = {}
    for name, fields in content.items():
        entry = _Entry(file, str(name), fields, lines)
        kind = entry.gpu()
        for word in (kind.name, *kind.aliases):
            other = taken.setdefault(_plain(word), kind.name)
            if other != kind.name:
                raise entry.fault("aliases", f"{word!r} already means {other}")
        found[kind.name] = kind
    return MappingProxyType(found)


class _Entry:
    """One kind in the table, whose mistakes are told with its file, line and field."""

    def __init__(self, file: Path, name: str, fields: Any, lines: Mapping[str, int]) -> None:
        self.file, self.name, self.lines = file, name, lines
        if not isinstance(fields, dict):
            raise self.fault("", "expected the fields of a GPU below its name")
        self.fields: dict[str, Any] = {str(key): value for key, value in fields.items()}

    def fault(self, key: str, words: str) -> UserError:
        path = f"{self.name}.{key}" if key else self.name
        line = self.lines.get(path, self.lines.get(self.name))
        return UserError(f"{self.file}{f':{line}' if line else ''}: {path}: {words}")

    def gpu(self) -> Gpu:
        known = {*NUMBERS, *COUNTS, *TEXTS, "tflops", "aliases"}
        for key in self.fields:
            if key not in known:
                raise self.fault(key, f"is no field of a GPU; there are: {', '.join(sorted(known))}")
        for key in (*NUMBERS, *COUNTS, *TEXTS, "tflops"):
            if self.fields.get(key) is None:
                raise self.fault(key, "is missing")
        numbers = {key: self.number(key, self.fields[key], least) for key, least in NUMBERS.items()}
        return Gpu(
            name=self.name,
            tflops=self.peaks(),
            nvlink_gpus=self.count("nvlink_gpus"),
            gpus_per_node=self.count("gpus_per_node"),
            compute=str(self.fields["compute"]),
            source=str(self.fields["source"]),
            aliases=self.aliases(),
            table=str(self.file),
            memory_gb=numbers["memory_gb"],
            bandwidth_gb_s=numbers["bandwidth_gb_s"],
            nvlink_gb_s=numbers["nvlink_gb_s"],
            pcie_gb_s=numbers["pcie_gb_s"],
            network_gb_s=numbers["network_gb_s"],
            power_w=numbers["power_w"],
        )

    def number(self, key: str, value: Any, least: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.fault(key, f"{value!r} is not a number")
        if value < least:
            raise self.fault(key, f"{value} is out of range; it must be at least {least:g}")
        return float(value)

    def count(self, key: str) -> int:
        value = self.number(key, self.fields[key], 1)
        if value != int(value) or value > MOST:
            raise self.fault(key, f"{value:g} is not a number of GPUs")
        return int(value)

    def peaks(self) -> Mapping[str, float]:
        values = self.fields["tflops"]
        if not isinstance(values, dict) or not values:
            raise self.fault("tflops", "expected TFLOP/s for each precision, such as {bf16: 989}")
        for key in values:
            if key not in PRECISIONS:
                raise self.fault("tflops", f"{key!r} is no precision; there are: {', '.join(PRECISIONS)}")
        return MappingProxyType(
            {key: self.number(f"tflops.{key}", value, 0.01) for key, value in values.items()}
        )

    def aliases(self) -> tuple[str, ...]:
        words = self.fields.get("aliases") or []
        if not isinstance(words, list):
            raise self.fault("aliases", f"{words!r} is not a list of names")
        return tuple(str(word) for word in words)
