"""A serving plan as numbers with their derivations, each prediction beside the error that such predictions had."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.plan.quantity import Quantity, given
from pipeline.plan.serving import evidence
from pipeline.plan.serving.engine import Engine, Step
from pipeline.plan.serving.fleet import Plan, Traffic
from pipeline.plan.serving.room import memory
from pipeline.plan.serving.show import Table

ROOFLINE = "pipeline/plan/serving/engine.py"
QUEUE = "pipeline/plan/serving/load.py"
ASKED = "asked for"
HOUR = 3600.0


def steady(found: Plan) -> list[tuple[Quantity, str]]:
    """Latencies and tokens of a plan, each with how far such predictions were off."""
    engine, state, traffic = found.engine, found.load, found.traffic
    error = evidence.throughput(engine)
    share = given("requests/s of a replica", state.rate, "", f"traffic / {found.replicas} replicas")
    decode = Quantity(
        "a step without a prompt",
        state.decode.total,
        "s",
        "sum of its parts",
        _parts(engine, state.decode, state.running, traffic),
        ROOFLINE,
    )
    prompt = Quantity(
        "what a prompt adds to a step",
        state.prompt,
        "s",
        "step with its tokens - step without, by the same formulas",
        (given("input", traffic.input, "token", ASKED), *_constants(engine)),
        ROOFLINE,
    )
    prompts = Quantity("share of time for prompts", state.prompts, "", "u = r e", (share, prompt), QUEUE)
    step = Quantity("mean step", state.mean_step, "s", "d / (1 - u)", (decode, prompts), QUEUE)
    first_step = Quantity(
        "step that reads the prompt",
        state.first_step,
        "s",
        "d + e (1 + r L): with the prompts of others who came during the same step",
        (decode, prompt, share),
        QUEUE,
    )
    under_way = Quantity(
        "step found under way",
        state.under_way,
        "s",
        "L = d / (1 - u) + e u / (1 - u^2)",
        (decode, prompt, prompts),
        QUEUE,
    )
    between = Quantity(
        "inter-token latency",
        state.between,
        "s",
        "mean step + (step that reads the prompt - mean step) u (1 - u^(output-1)) / ((1 - u) (output - 1))",
        (step, first_step, prompts),
        QUEUE,
    )
    first = Quantity(
        "time to first token",
        state.first_token,
        "s",
        "half of the step found under way + step that reads the prompt",
        (under_way, first_step),
        QUEUE,
    )
    limit = given("the most a replica takes", state.rate / state.utilisation, "", QUEUE)
    used = Quantity("utilisation", state.utilisation, "", "rate / the most a replica takes", (share, limit))
    running = Quantity(
        "requests at once in a replica",
        state.running,
        "",
        "rate x output x t (Little's law)",
        (share, between),
    )
    fastest = Quantity(
        "most output tokens/s of a GPU",
        engine.throughput(traffic.input, traffic.output) / engine.tensor,
        "token/s",
        "largest batch / its step / tensor-parallel size",
        (
            memory(engine, traffic.input + traffic.output)[-1],
            *_constants(engine),
        ),
        ROOFLINE,
    )
    planned = Quantity(
        "output tokens/s of a GPU as planned",
        traffic.rate * traffic.output / found.gpus,
        "token/s",
        "rate x output / GPUs",
        (given("rate", traffic.rate, "", ASKED), given("output", traffic.output, "token", ASKED)),
    )
    return [
        (first, str(evidence.first_token(engine))),
        (between, str(evidence.between_tokens(engine))),
        (running, ""),
        (used, f"planned for at most {traffic.utilisation:g}, the rest is headroom for bursts"),
        (fastest, str(error)),
        (planned, ""),
    ]


def bill(found: Plan) -> list[tuple[Quantity, str]]:
    """Replicas, GPUs and money, with the error that they inherit from the throughput."""
    traffic, error = found.traffic, str(evidence.throughput(found.engine))
    rate = given("requests/s", traffic.rate, "", ASKED)
    replicas = Quantity(
        "replicas",
        found.replicas,
        "",
        "requests/s / the highest rate of a replica that keeps the targets, rounded up",
        (rate, given("utilisation at most", traffic.utilisation, "", ASKED)),
        QUEUE,
    )
    gpus = Quantity(
        "GPUs",
        found.gpus,
        "",
        "replicas x tensor-parallel size",
        (replicas, given("tensor-parallel size", found.engine.tensor)),
    )

    def each(name: str, tokens: int, what: str) -> Quantity:
        value = found.cost.value / (traffic.rate * tokens * HOUR) * 1e6
        count = given(what, tokens, "token", ASKED)
        return Quantity(
            name,
            value,
            "USD",
            f"cost per hour / (requests/s x {what} x 3600) x 1e6",
            (found.cost, rate, count),
        )

    return [
        (replicas, error),
        (gpus, error),
        (found.cost, found.hourly.source),
        (each("cost per million output tokens", traffic.output, "output tokens a request"), error),
        (
            each("cost per million tokens in and out", traffic.input + traffic.output, "tokens a request"),
            error,
        ),
    ]


def beside(found: Sequence[Plan]) -> Table:
    """The plans of all tensor-parallel sizes, the cheapest first."""
    rows = []
    for one in found:
        first, between, _, _, _, _ = (quantity for quantity, _ in steady(one))
        replicas, gpus, cost, _, _ = (quantity for quantity, _ in bill(one))
        tokens = one.traffic.input + one.traffic.output
        batch = memory(one.engine, tokens)[-1]
        most = one.load.rate / one.load.utilisation
        rate = given(
            "requests/s of a replica", one.load.rate, "", f"an even share; at most {most:.3g} can be taken"
        )
        rows.append(
            (
                given("tensor-parallel size", one.engine.tensor),
                batch,
                rate,
                first,
                between,
                replicas,
                gpus,
                cost,
            )
        )
    headings = ("TP", "largest batch", "requests/s", "first token", "between", "replicas", "GPUs", "an hour")
    return Table("By tensor-parallel size (TP), each with its replicas", headings, tuple(rows))


def _parts(engine: Engine, step: Step, running: float, traffic: Traffic) -> tuple[Quantity, ...]:
    """The parts of a decoding step with what they are computed from."""
    shape, gpu = engine.shape, engine.gpu
    compute, reading, network, wait = _constants(engine)
    tensor = given("t, tensor-parallel size", engine.tensor, "", "chosen")
    requests = given("b, requests", running, "", "Little's law")
    peak = given("peak", engine.peak, "FLOP/s", f"{gpu.name}, dense, for {engine.precision.name}")
    speed = given("bandwidth", gpu.bandwidth_gb_s * 1e9, "B/s", gpu.name)
    active = given("active parameters of the layers", shape.active_layer_parameters, "parameter", shape.name)
    whole = given("bytes of the layers", shape.layer_parameters * engine.precision.bytes, "B", shape.name)
    head = given("parameters of the output matrix", shape.head_parameters, "parameter", shape.name)
    length = traffic.input + traffic.output // 2
    cache = given("cache of a request halfway, on a GPU", engine.cache_bytes(length), "B", shape.name)
    found = [
        Quantity(
            "matrices of the layers",
            step.layers,
            "s",
            "max(2 active b / (peak compute), bytes read / (bandwidth memory)) / t",
            (active, requests, peak, compute, whole, speed, reading, tensor),
            ROOFLINE,
        ),
        Quantity(
            "output matrix",
            step.head,
            "s",
            "the same for the output matrix, in bf16",
            (head, requests, speed, reading, tensor),
            ROOFLINE,
        ),
        Quantity(
            "reading caches",
            step.attention,
            "s",
            "b cache / (bandwidth memory)",
            (requests, cache, speed, reading),
            ROOFLINE,
        ),
    ]
    if engine.tensor > 1:
        link = given("link, one way", gpu.link(engine.tensor), "B/s", gpu.name)
        width, depth = (
            given("width", shape.width, "", shape.name),
            given("layers", shape.depth, "", shape.name),
        )
        found.append(
            Quantity(
                "all-reduces",
                step.network,
                "s",
                "layers (2 x 2 B b width 2 (t-1)/t / (link network) + wait)",
                (depth, requests, width, tensor, link, network, wait),
                ROOFLINE,
            )
        )
    return tuple(found)


def _constants(engine: Engine) -> tuple[Quantity, ...]:
    share = engine.efficiency
    return (
        given("compute", share.compute, "", f"share of the dense peak; fitted, {evidence.SOURCE}"),
        given("memory", share.memory, "", f"share of the bandwidth; fitted, {evidence.SOURCE}"),
        given("network", share.network, "", f"share of the link one way; fitted, {evidence.SOURCE}"),
        given("wait", share.wait, "s", f"of a layer's all-reduces; fitted, {evidence.SOURCE}"),
    )
