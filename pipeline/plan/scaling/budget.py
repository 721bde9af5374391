"""Training compute in FLOP, from FLOP, GPU-hours or money."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given

MFU = 0.4
MFU_SOURCE = "default; Llama 3 405B trained at 0.38 to 0.43 (Dubey et al. 2024, Table 4)"
SECONDS = 3600.0
# A thousand times beyond what anyone has plans for: more is a slip of the exponent.
LEAST_PARAMETERS, MOST_PARAMETERS = 1e5, 1e15
MOST_TOKENS = 1e20
MOST_FLOP = 1e36

Peak = Callable[[str], Mapping[str, float]]
Price = Callable[[str], Quantity]


def positive(text: str, option: str) -> float:
    """A number that an option was given.  Raises :class:`UserError` unless it is finite and above 0."""
    try:
        value = float(text.replace("_", "").replace(",", ""))
    except ValueError:
        raise UserError(f"{option} {text}: expected a number, e.g. {option} 1e21") from None
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"{option} {text}: expected a positive number")
    return value


def compute(text: str, option: str) -> float:
    """Training compute in FLOP that an option was given, from 1 to :data:`MOST_FLOP`."""
    return _bounded(positive(text, option), f"{option} {text}")


def _bounded(flops: float, said: str) -> float:
    if not 1 <= flops <= MOST_FLOP:
        raise UserError(f"{said}: training compute must be from 1 to {MOST_FLOP:g} FLOP")
    return flops


def share(text: str, option: str) -> float:
    """A number above 0 and at most 1."""
    value = positive(text, option)
    if value > 1:
        raise UserError(f"{option} {text}: expected a share from 0 to 1, e.g. 0.4")
    return value


def whole(text: str, option: str) -> int:
    """A whole number of 0 or more."""
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{option} {text}: expected a whole number") from None
    if value < 0:
        raise UserError(f"{option} {text}: expected a whole number of 0 or more")
    return value


def from_flops(text: str) -> Quantity:
    """A budget that was given in FLOP."""
    return given("training compute", compute(text, "--flops"), "FLOP", "--flops")


def from_gpu_hours(
    text: str, gpu: str, mfu: str | None, precision: str, peak: Peak | None = None
) -> Quantity:
    """GPU-hours x peak x MFU.  Raises :class:`UserError` for an unknown GPU or precision."""
    hours = given("GPU-hours", positive(text, "--gpu-hours"), "h", "--gpu-hours")
    return _compute(hours, gpu, mfu, precision, peak)


def from_money(
    text: str,
    gpu: str,
    mfu: str | None,
    precision: str,
    peak: Peak | None = None,
    price: Price | None = None,
) -> Quantity:
    """What the money buys at the GPU's price an hour (``configs/prices.yaml``)."""
    money = given("budget", positive(text, "--budget-usd"), "USD", "--budget-usd")
    hourly = (price or _price)(gpu)
    hours = Quantity(
        "GPU-hours", money.value / hourly.value, "h", "budget / price of an hour", (money, hourly)
    )
    return _compute(hours, gpu, mfu, precision, peak)


def _compute(hours: Quantity, gpu: str, mfu: str | None, precision: str, peak: Peak | None) -> Quantity:
    speeds = (peak or _peak)(gpu)
    if precision not in speeds:
        raise UserError(f"--precision {precision}: {gpu} has {', '.join(sorted(speeds))}")
    speed = given(
        f"peak of {gpu} in {precision}", speeds[precision] * 1e12, "FLOP/s", "pipeline/plan/hardware.py"
    )
    used = (
        given("model FLOPs utilisation", MFU, "", MFU_SOURCE)
        if mfu is None
        else given("model FLOPs utilisation", share(mfu, "--mfu"), "", "--mfu")
    )
    flops = hours.value * SECONDS * speed.value * used.value
    return Quantity(
        "training compute",
        _bounded(flops, f"{hours.value:g} GPU-hours of {gpu} are {flops:.3g} FLOP"),
        "FLOP",
        "GPU-hours x 3600 s x peak x MFU",
        (hours, speed, used),
    )


def _peak(gpu: str) -> Mapping[str, float]:
    found: Mapping[str, float] = importlib.import_module("pipeline.plan.hardware").gpu(gpu).tflops
    return found


def _price(gpu: str) -> Quantity:
    found: Quantity = importlib.import_module("pipeline.plan.money").hourly(gpu)
    return found
