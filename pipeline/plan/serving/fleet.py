"""How many replicas and GPUs given traffic needs, how fast they answer, and what a million tokens cost.

For each replica that holds the model (``choices.py``): the highest rate that keeps the mean latencies within their
targets and the utilisation within the headroom (``load.py``), the replicas that share the traffic evenly, and their
money.  The cheapest is the plan, of equally cheap ones that with the shorter inter-token latency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.serving import load
from pipeline.plan.serving.engine import Engine
from pipeline.plan.serving.interfaces import Shape

FEW_REQUESTS, LITTLE_ROOM = 32, 10e9  # where TensorRT-LLM's own build tool warns as well


@dataclass(frozen=True)
class Traffic:
    """Requests a second of the whole fleet, mean lengths in tokens, and bounds on mean latencies (s) and utilisation."""

    rate: float
    input: int
    output: int
    first_token: float = math.inf
    between: float = math.inf
    utilisation: float = load.HEADROOM


@dataclass(frozen=True)
class Plan:
    """So many replicas of an engine, each under an even share of the traffic."""

    engine: Engine
    traffic: Traffic
    replicas: int
    load: load.Load
    hourly: Quantity

    @property
    def gpus(self) -> int:
        """GPUs of all replicas."""
        return self.replicas * self.engine.tensor

    @property
    def cost(self) -> Quantity:
        """Money an hour of the fleet."""
        gpus = given("GPUs", self.gpus)
        value = self.gpus * self.hourly.value
        return Quantity("cost per hour", value, "USD", "GPUs x price of a GPU hour", (gpus, self.hourly))


def plan(traffic: Traffic, engines: Sequence[Engine], hourly: Quantity) -> list[Plan]:
    """A plan for each engine that can keep the targets, the cheapest first.

    Raises :class:`UserError` where none can, with the best latencies that there are.
    """
    found = []
    for engine in engines:
        most = load.highest_rate(
            engine,
            traffic.input,
            traffic.output,
            traffic.first_token,
            traffic.between,
            traffic.utilisation,
        )
        if not most:
            continue
        # A hair of tolerance, so that a rate that divides evenly is not given a replica more.
        replicas = max(1, math.ceil(traffic.rate / most - 1e-9))
        state = load.under(engine, traffic.rate / replicas, traffic.input, traffic.output)
        assert state is not None, "less than the highest rate"
        found.append(Plan(engine, traffic, replicas, state, hourly))
    if not found:
        raise UserError(_unreachable(traffic, engines))
    return sorted(found, key=lambda one: (one.gpus, one.load.between))


def _unreachable(traffic: Traffic, engines: Sequence[Engine]) -> str:
    """What an idle replica reaches, where that is more than the targets."""
    best = []
    for engine in engines:
        idle = load.under(engine, 1e-9, traffic.input, traffic.output)
        if idle is not None:
            best.append((idle.first_token, idle.between, engine))
    first, between = min(best, key=lambda one: one[0]), min(best, key=lambda one: one[1])
    return (
        f"{engines[0].shape.name} on {engines[0].gpu.name} in {engines[0].precision.name} cannot keep these latencies at any "
        f"load: an idle replica gives its first token after {first[0] * 1e3:.0f} ms (--tensor-parallel {first[2].tensor}) and "
        f"the next every {between[1] * 1e3:.1f} ms (--tensor-parallel {between[2].tensor}); ask for no less, for fewer bits, "
        "or for a GPU with more bandwidth"
    )


def limits(found: list[Plan], engines: Sequence[Engine]) -> tuple[str, ...]:
    """Remarks: what cannot keep the targets, and a best plan whose memory is so full that little decides it."""
    kept = {one.engine.tensor for one in found}
    lost = [str(engine.tensor) for engine in engines if engine.tensor not in kept]
    remarks = (
        [f"tensor-parallel size {', '.join(lost)}: holds the model, and cannot keep the latencies"]
        if lost
        else []
    )
    best = found[0].engine
    batch = best.largest_batch(found[0].traffic.input + found[0].traffic.output)
    if batch < FEW_REQUESTS or best.cache_room < LITTLE_ROOM:
        remarks.append(
            f"tight: {best.cache_room / 1e9:.1f} GB for caches on a GPU, {batch} requests at once; a GB more or less changes the "
            "speed, and the largest of the held-out errors were of such rows"
        )
    return tuple(remarks)


def check_context(shape: Shape, traffic: Traffic) -> None:
    """Raise :class:`UserError` when a request is longer than the model's context."""
    tokens = traffic.input + traffic.output
    if shape.context is not None and tokens > shape.context:
        raise UserError(
            f"--input {traffic.input} and --output {traffic.output}: {tokens:,} tokens, and the context of "
            f"{shape.name} is {shape.context:,}"
        )
