"""The verbs of serving: from options to an answer."""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

from pipeline.errors import UserError
from pipeline.plan import money
from pipeline.plan.quantity import Quantity, given
from pipeline.plan.scaling import laws, picture
from pipeline.plan.scaling.budget import LEAST_PARAMETERS, MOST_FLOP, MOST_PARAMETERS
from pipeline.plan.serving import optimum, plots
from pipeline.plan.serving.amounts import amount, positive, share, within
from pipeline.plan.serving.engine import PRECISIONS, computes
from pipeline.plan.serving.interfaces import Gpu, Shape
from pipeline.plan.serving.names import LAWS, MFU, TRAINED_IN
from pipeline.plan.serving.show import Answer, Table, show

ASKED = "asked for"
# What constants of a law may be: the published have exponents from 0.28 to 0.37, and A and B from 400 to 2,100.
CONSTANTS = {"E": (0.0, 1e3), "A": (1e-3, 1e9), "B": (1e-3, 1e9), "ALPHA": (0.05, 2.0), "BETA": (0.05, 2.0)}
OUTPUT_SHARE = 0.25
FOR_MONEY = (
    "--serve-gpu",
    "--price",
    "--serve-price",
    "--precision",
    "--serve-precision",
    *(f"--mfu-{name}" for name in MFU),
)
MOST_RATE, MOST_LENGTH = 1e9, 1e9  # requests a second of a fleet, tokens of a request
MOST_SERVED = 1e18  # tokens: a hundred million for each person
REMARKS = (
    "Latencies are means, tails are longer; between the client and the engine nothing is counted.",
    "Held out means: measured rows that no constant was fitted on (pipeline/plan/published/serving*.csv).",
)


# -------------------------------------------------------------------------------------------- scale serve


def serve(options: argparse.Namespace) -> int:
    """The size and tokens that make training and serving cheapest, and how they move with demand."""
    if options.plot:
        picture.check(options.plot)
    if options.constants is not None and options.law is not None:
        raise UserError("--law and --constants: one law at a time")
    law = optimum.LAWS[options.law or LAWS[0]] if options.constants is None else _own_law(options.constants)
    asked, answered = _demand(options)
    rates = _rates(options)
    steps = [0.0, 0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
    try:
        loss, words = _quality(options, law)
        found = optimum.cheapest(law, loss, asked, answered, rates)
        table = [_scaled(law, loss, asked, answered, rates, step) for step in steps]
    except (ArithmeticError, ValueError):
        if options.constants is None:
            raise  # the published laws have numbers for all that is let in
        raise UserError(
            f"--constants {options.constants}: no law with numbers for such a model and demand"
        ) from None
    lines = (
        found.demand,
        loss,
        found.parameters,
        found.tokens,
        found.data_ratio,
        found.cost,
        found.plain_parameters,
        found.plain_tokens,
        found.plain_cost,
        found.saving,
    )
    answer = Answer(
        f"Cheapest over training and serving, {words}",
        tuple((quantity, "") for quantity in lines),
        (
            Table(
                "How the optimum moves with demand",
                ("served", "parameters", "tokens", "x data", "cost", "saving"),
                tuple(
                    (one.demand, one.parameters, one.tokens, one.data_ratio, one.cost, one.saving)
                    for one in table
                ),
            ),
        ),
        _remarks(found),
    )
    if options.plot:
        base = found.demand.value
        powers = [10 ** (power / 8) for power in range(-24, 25)]
        curve = [_scaled(law, loss, asked, answered, rates, power) for power in powers] if base else table
        plots.demand(options.plot, curve, found, answer.title, rates.unit != "FLOP")
    show(answer, explain=options.explain, machine=options.json)
    return 0


def _quality(options: argparse.Namespace, law: optimum.Law) -> tuple[Quantity, str]:
    if options.quality is not None:
        size = amount(options.quality, "--quality")
        within(size, "--quality", LEAST_PARAMETERS, MOST_PARAMETERS, "parameters")
        return optimum.quality_of(law, size), f"as good as a compute-optimal {options.quality}"
    if options.flops is not None:
        flops = within(amount(options.flops, "--flops"), "--flops", 1, MOST_FLOP, "FLOP")
        return optimum.quality_at(law, flops), f"as good as {flops:.3g} FLOP of training allow"
    loss = amount(options.loss, "--loss")
    return given("loss", loss, "", ASKED), f"with a loss of {loss:g}"


def _own_law(text: str) -> optimum.Law:
    values = [amount(word, "--constants") for word in text.split(",")]
    if len(values) != 5:
        raise UserError(
            f"--constants {text}: give five numbers, E,A,B,ALPHA,BETA of L = E + A/N^ALPHA + B/D^BETA"
        )
    for name, value, (least, most) in zip(CONSTANTS, values, CONSTANTS.values(), strict=True):
        within(value, f"--constants {text}: {name}", least, most)
    return optimum.Law("of your own", laws.Parametric(*values), "--constants")


def _demand(options: argparse.Namespace) -> tuple[Quantity, Quantity]:
    both = (options.input_tokens, options.output_tokens)
    if (options.demand is None) == (both == (None, None)):
        raise UserError("give --demand, or --input-tokens with --output-tokens")
    if options.demand is None:
        if None in both:
            raise UserError("--input-tokens and --output-tokens belong together; 0 is allowed")
        if options.output_share is not None:
            raise UserError("--output-share is of --demand; --output-tokens says it already")
        asked = amount(options.input_tokens, "--input-tokens", zero=True)
        answered = amount(options.output_tokens, "--output-tokens", zero=True)
    else:
        whole = amount(options.demand, "--demand", zero=True)
        part = OUTPUT_SHARE if options.output_share is None else options.output_share
        if not 0 <= part <= 1:
            raise UserError(f"--output-share {part:g}: must be from 0 to 1")
        answered = whole * part
        asked = whole - answered
    option = "--demand" if options.demand is not None else "--input-tokens and --output-tokens, together"
    if asked + answered > MOST_SERVED:
        raise UserError(f"{option} {asked + answered:g}: must be at most {MOST_SERVED:g} tokens")
    return given("input tokens", asked, "token", ASKED), given("output tokens", answered, "token", ASKED)


def _scaled(
    law: optimum.Law,
    loss: Quantity,
    asked: Quantity,
    answered: Quantity,
    rates: optimum.Rates,
    times: float,
) -> optimum.Optimum:
    source = f"{times:g} x what was asked for"
    return optimum.cheapest(
        law,
        loss,
        given(asked.name, asked.value * times, "token", source),
        given(answered.name, answered.value * times, "token", source),
        rates,
    )


def _rates(options: argparse.Namespace) -> optimum.Rates:
    if options.gpu is None:
        said = [
            name
            for name in FOR_MONEY
            if getattr(options, name.removeprefix("--").replace("-", "_")) is not None
        ]
        if said:
            raise UserError(
                f"{said[0]} needs --gpu, the kind that trains; without it FLOP are counted, not money"
            )
        return optimum.COUNT
    train, serving = _gpu(options.gpu), _gpu(options.serve_gpu or options.gpu)
    same = options.serve_gpu in (None, options.gpu)
    serve_price = options.price if same and options.serve_price is None else options.serve_price
    paid, paid_serving = (
        _hourly(train, options.price, "--price"),
        _hourly(serving, serve_price, "--serve-price"),
    )
    rates = []
    trained = _trained(train, options.precision or "bf16")
    served = _peak(serving, options.serve_precision or "bf16")
    for name, peak, hourly, said in (
        ("train", trained, paid, options.mfu_train),
        ("input", served, paid_serving, options.mfu_input),
        ("output", served, paid_serving, options.mfu_output),
    ):
        mfu = share(MFU[name] if said is None else said, f"--mfu-{name}")
        used = given(f"MFU, {name}", mfu, "", "a setting: measure yours")
        rates.append(optimum.money_rate(f"USD a FLOP, {name}", hourly, peak, used))
    return optimum.Rates(rates[0], rates[1], rates[2], "USD")


def _remarks(found: optimum.Optimum) -> tuple[str, ...]:
    per_parameter = found.tokens.value / found.parameters.value
    said = ["Every number rests on the loss law; --law shows another."]
    if per_parameter > 200:
        said.append(
            f"{per_parameter:.0f} tokens a parameter is far from what such laws were fitted on (about 20): they then promise "
            "too much of further tokens (Sardana et al. 2024, section 5)."
        )
    return tuple(said)


# ----------------------------------------------------------------------------------------- scale sampling


def sampling(options: argparse.Namespace) -> int:
    """Coverage against samples, and what a small model sampled often is worth beside a large one."""
    from pipeline.plan.serving import coverage

    if options.plot:
        picture.check(options.plot)
    answer = coverage.answer(options)
    show(answer, explain=options.explain, machine=options.json)
    return 0


# -------------------------------------------------------------------------------------------- scale fleet


def fleet(options: argparse.Namespace) -> int:
    """Replicas, GPUs, latencies and money for given traffic."""
    from pipeline.plan.serving import choices, evidence, room, statement
    from pipeline.plan.serving import fleet as fleets

    traffic = fleets.Traffic(
        within(amount(options.rate, "--rate"), "--rate", 1e-9, MOST_RATE, "requests/s"),
        _whole(options.input, "--input"),
        _whole(options.output, "--output"),
        positive(options.ttft_ms, "--ttft-ms") / 1e3 if options.ttft_ms is not None else math.inf,
        positive(options.itl_ms, "--itl-ms") / 1e3 if options.itl_ms is not None else math.inf,
        share(options.utilisation, "--utilisation"),
    )
    if traffic.utilisation > 0.99:
        raise UserError(
            f"--utilisation {traffic.utilisation:g}: at most 0.99, since a full queue never empties"
        )
    shape, gpu, precision = _shape(options.model), _gpu(options.gpu), PRECISIONS[options.precision]
    fleets.check_context(shape, traffic)
    cache = options.cache or ("fp8" if options.precision == "fp8" else "bf16")
    tokens = traffic.input + traffic.output
    tried = choices.engines(shape, gpu, precision, cache, evidence.efficiency(), options.tensor_parallel)
    held = choices.holding(tried, tokens, _gpus())
    found = fleets.plan(traffic, held, _hourly(gpu, options.price, "--price"))
    best = found[0]
    lines = [(quantity, "") for quantity in room.memory(best.engine, tokens)]
    answer = Answer(
        f"{best.gpus} x {gpu.name}, {best.engine.tensor} a replica, for {traffic.rate:g} requests/s of {shape.name} in {precision.name}, "
        f"{traffic.input} tokens in and {traffic.output} out, cache in {cache}",
        (*lines, *statement.steady(best), *statement.bill(best)),
        (statement.beside(found),),
        (*fleets.limits(found, held), *REMARKS),
    )
    show(answer, explain=options.explain, machine=options.json)
    return 0


# -------------------------------------------------------------------------------------------------- common


def _whole(text: str, option: str) -> int:
    value = within(amount(text, option), option, 1, MOST_LENGTH, "tokens")
    if value != int(value):
        raise UserError(f"{option} {text}: must be a whole number of tokens")
    return int(value)


def _shape(model: str) -> Shape:
    from pipeline.plan import shapes

    if Path(model).is_dir() or model.endswith(".json"):
        return shapes.read(model)
    from pipeline import recipe
    from pipeline.toolchains import ROOT

    loaded = recipe.load(model, ROOT)
    if not {"export", "deploy"} & set(loaded.settings.stages):
        raise UserError(
            f"{loaded.name} serves no model: it has neither export nor deploy among its stages "
            f"({', '.join(loaded.settings.stages)}); name a recipe that has, or a config.json"
        )
    found = shapes.of_recipe(loaded.settings.model)
    # What a recipe trains on is no bound of its base, whose own config.json says what is.
    context = found.context if loaded.settings.model.base is None or found.name.endswith(".json") else None
    return dataclasses.replace(found, name=loaded.name, context=context)


def _gpu(name: str) -> Gpu:
    from pipeline.plan import hardware

    found: Gpu = hardware.gpu(name)
    return found


def _gpus() -> list[Gpu]:
    from pipeline.plan import hardware

    return list(hardware.kinds().values())


def _peak(gpu: Gpu, precision: str) -> Quantity:
    for unit in PRECISIONS[precision].units:
        if unit in gpu.tflops:
            return given("peak", gpu.tflops[unit] * 1e12, "FLOP/s", f"{gpu.name}, dense {precision}")
    raise UserError(f"{gpu.name} does not compute in {precision}; it does in {', '.join(computes(gpu))}")


def _trained(gpu: Gpu, precision: str) -> Quantity:
    """The peak that training is counted by: that of the precision itself, for weights are not dequantised there."""
    if precision in gpu.tflops:
        return given("peak", gpu.tflops[precision] * 1e12, "FLOP/s", f"{gpu.name}, dense {precision}")
    there = [name for name in TRAINED_IN if name in gpu.tflops]
    raise UserError(
        f"--precision {precision}: {gpu.name} does not train in it; it does in {', '.join(there)}"
    )


def _hourly(gpu: Gpu, price: float | None, option: str) -> Quantity:
    if price is not None:
        return given("price of a GPU hour", positive(price, option), "USD", option)
    return money.hourly(gpu.name)
