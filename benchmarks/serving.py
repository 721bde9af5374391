"""Serving beside others: tokens a second, time to first token, and what the gateway costs.

    make bench-serving
    .venvs/controller/bin/python -m benchmarks.serving --rounds 5 --write

The recipe's exported model for everybody, in fp32 and with the same threads: our gateway and our Triton alone,
``model.generate`` behind FastAPI (``benchmarks/servers/transformers_server.py``), ``transformers serve`` with
continuous batching, and llama.cpp's server where it has been built (``make bench-llama-server``).  All servers run
the whole time and rest when it is not their turn; one load generator, a process of its own, asks them
in turn the same questions of the curated test split, greedy, for the same number of tokens.  Before that they answer
some questions to their natural ends: who does not say what Hugging Face says serves another model and is left out.

The gateway's own time is the difference between the times to first token of one question asked of the gateway
and of the Triton behind it, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.servers import llama_cpp, ours
from benchmarks.servers.contender import Contender, Loader, Round
from benchmarks.typed import typed
from pipeline.runner.execute import step_environment
from pipeline.runner.provenance import processor
from pipeline.threads import thread_count
from pipeline.toolchains import ROOT, Toolchain

RECIPE = "llama-tiny"
RIVALS = "bench-serving"  # the toolchain of the other servers
GATEWAY, DIRECT, PLAIN = "ours, through the gateway", "ours, Triton alone", "Transformers behind FastAPI"
BATCHED = "transformers serve, continuous batching"
LEVELS = (1, 4, 8, 16)
THROUGHPUT = (8, 5.0)  # at that concurrency so many times the plain server's tokens a second
FIRST_TOKEN = (4, 0.5)  # at that concurrency at most so much of its time to first token
OVERHEAD = 0.05  # of the time to first token
OVERHEAD_LEVELS = (1, 4)
SAME = 0.9  # of the answers must be Hugging Face's, or it is another model
PROBES = 40


def rivals(bundle: Path, folder: Path, port: int, threads: int) -> list[Contender]:
    """The other servers that are installed here."""
    toolchain = Toolchain(RIVALS)
    programs = toolchain.folder / "bin"
    environment = step_environment(toolchain, threads)
    address = f"http://127.0.0.1:{port}"
    found = [
        Contender(
            PLAIN,
            _openai(address, bundle.name, {"ignore_eos": True}),
            "fp32",
            [str(toolchain.python), "-m", "benchmarks.servers.transformers_server", str(bundle), str(port), str(threads)],
            environment,
        )
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port + 1}"
    # Its blocks of keys and values would take most of the machine's memory.
    cache = ["--cb-num-blocks", "256", "--cb-max-batch-tokens", "512"]
    found.append(
        Contender(
            BATCHED,
            _openai(address, str(bundle), {}),
            "fp32",
            [str(programs / "transformers"), "serve", str(bundle), "--continuous-batching", *cache, "--device", "cpu",
             "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port + 1)],
            environment,
        )
    )  # fmt: skip
    if llama_cpp.program().is_file():
        file = folder / "model.gguf"
        convert = [str(toolchain.python), "-m", "benchmarks.servers.gguf_model", str(bundle), str(file)]
        subprocess.run(convert, cwd=ROOT, env=environment, check=True)
        target = _openai(f"http://127.0.0.1:{port + 2}", "model", {"ignore_eos": True})
        found.append(
            Contender(
                f"llama.cpp's server ({llama_cpp.PACKAGE})",
                # It promises to keep a connection open, and closes it after a stream.
                target | {"keep_alive": False},
                "fp32, keys and values too",
                llama_cpp.command(file, port + 2, threads, max(LEVELS)),
                environment,
            )
        )
    return found


def _openai(address: str, model: str, extra: dict[str, Any]) -> dict[str, Any]:
    return {"protocol": "openai", "address": address, "model": model, "extra": extra}


def own(deployed: ours.Deployed) -> list[Contender]:
    """The gateway, and the Triton behind it."""
    triton = {
        "protocol": "triton",
        "address": deployed.triton,
        "model": deployed.model,
        "extra": {"ignore_end": True},
    }
    gateway = _openai(deployed.gateway, deployed.model, {"ignore_eos": True})
    behind = {name: pid for name, pid in deployed.pids.items() if name != "gateway"}
    return [
        Contender(GATEWAY, gateway, "fp32", pids=deployed.pids),
        Contender(DIRECT, triton, "fp32", pids=behind),
    ]


def order(
    targets: list[dict[str, Any]], texts: list[str], tokens: int, concurrency: int, exact: bool = True
) -> dict[str, Any]:
    """An order to the load generator."""
    asked = [
        {"messages": [{"role": "user", "content": text}], "max_tokens": tokens, "exact": exact}
        for text in texts
    ]
    return {"targets": targets, "questions": asked, "concurrency": concurrency}


def exact_length(side: Contender, tokens: int) -> dict[str, Any]:
    """The target, made to answer with so many tokens."""
    if side.name != BATCHED:
        return side.target
    # `transformers serve` knows no ignore_eos; it takes a generation config, here one without an end token.
    config = json.dumps({"max_new_tokens": tokens, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0})
    return side.target | {"extra": {"generation_config": config}}


def agreeing(
    sides: list[Contender], loader: Loader, texts: list[str], tokens: int
) -> tuple[list[Contender], list[str]]:
    """The contenders that say what Hugging Face says, and why others are left out."""
    told: dict[str, dict[int, str]] = {}
    for side in sides:
        answers = loader.run(order([side.target], texts, tokens, 1, exact=False), side.pids).answers
        told[side.name] = {answer["question"]: answer["text"].strip() for answer in answers}
    kept, left = [], []
    for side in sides:
        same = sum(told[side.name][number] == text for number, text in told[PLAIN].items())
        side.same = same, len(texts)
        if same >= SAME * len(texts):
            kept.append(side)
        else:
            left.append(f"{side.name} is left out: {same} of {len(texts)} answers are Hugging Face's.")
    return kept, left


def measure(
    sides: list[Contender], loader: Loader, texts: list[str], tokens: int, rounds: int, requests: int
) -> None:
    """Ask the contenders in turn, each round beginning with another one."""
    chance = random.Random(1)
    for number in range(rounds + 1):  # the first warms up and is not kept
        for level in LEVELS:
            asked = chance.sample(texts, requests * level)
            for place in range(len(sides)):
                side = sides[(number + place) % len(sides)]
                found = loader.run(order([exact_length(side, tokens)], asked, tokens, level), side.pids)
                if number:
                    side.rounds.setdefault(level, []).append(found)
        if number:
            rates = ", ".join(f"{side.name} {side.rounds[LEVELS[-1]][-1].rate:,.0f}" for side in sides)
            print(f"round {number} of {rounds}, tokens/s at {LEVELS[-1]}: {rates}", flush=True)


def ratio(one: Contender, other: Contender, level: int, figure: Any) -> float:
    """How many times the second's figure the first's is: the median over the rounds."""
    return statistics.median(
        figure(a) / figure(b) for a, b in zip(one.rounds[level], other.rounds[level], strict=True)
    )


def rate(found: Round) -> float:
    """Tokens a second of a round."""
    return found.rate


def first_token(found: Round) -> float:
    """The median time to first token of a round, in seconds."""
    return statistics.median(found.values("first"))


def pooled(side: Contender, level: int, name: str) -> list[float]:
    """A figure of all answers at a concurrency."""
    return [value for found in side.rounds[level] for value in found.values(name)]


def table(sides: list[Contender], level: int) -> list[str]:
    """Rows of one concurrency; the first side is ours."""
    lines = [
        f"| concurrency {level} | tokens/s (median) | least | most | ours is | first token, ms | 99% | ours takes | further token, ms | processor ms a token |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side in sides:
        rates = [found.rate for found in side.rounds[level]]
        firsts, further = pooled(side, level, "first"), pooled(side, level, "between")
        spent = sum(sum(found.processor_s.values()) for found in side.rounds[level])
        tokens = sum(found.tokens for found in side.rounds[level])
        times = share = ""
        if side is not sides[0]:
            times = f"{ratio(sides[0], side, level, rate):.2f}x"
            share = f"{ratio(sides[0], side, level, first_token):.0%}"
        lines.append(
            f"| {side.name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} | {times} | "
            f"{statistics.median(firsts) * 1e3:,.1f} | {percentile(firsts, 99) * 1e3:,.1f} | {share} | "
            f"{statistics.median(further) * 1e3:,.2f} | {spent / tokens * 1e3:.2f} |"
        )
    return [*lines, ""]


def percentile(values: list[float], percent: int) -> float:
    """A percentile of two values or more."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def overhead(
    sides: list[Contender], loader: Loader, texts: list[str], tokens: int, level: int
) -> tuple[list[str], float]:
    """A row of the gateway's own time at a concurrency, and its share of the time to first token.

    Every question is asked of Triton, of the gateway's pass-through and of its chat completions, one after
    the other; the difference of each pair counts, and of these the median.
    """
    gateway, direct = sides
    through = direct.target | {"address": gateway.target["address"]}
    targets = [direct.target, through, gateway.target]
    loader.run(order(targets, texts[: 4 * level], tokens, level), {})
    found = loader.run(order(targets, texts, tokens, level), gateway.pids)
    base = statistics.median(found.values("first", 0))
    row, share = [f"| {level} | {base * 1e3:.2f} ms |"], 0.0
    for place in (1, 2):
        more = statistics.median(paired(found, place))
        share = more / base
        row.append(f" {more * 1e3:+.2f} ms | {share:+.1%} |")
    whole = statistics.median(found.values("seconds", 2)) / statistics.median(found.values("seconds", 0)) - 1
    # Of three answers two go through the gateway.
    spent = found.processor_s.get("gateway", 0.0) / (found.tokens * 2 / 3)
    row.append(f" {whole:+.1%} | {spent * 1e6:.0f} us |")
    return ["".join(row)], share


def paired(found: Round, place: int) -> list[float]:
    """By question: how much later the first token of a target comes than that of the first target."""
    firsts = [
        {a["question"]: a["first"] for a in found.answers if a["target"] == target} for target in (0, place)
    ]
    return [firsts[1][question] - first for question, first in firsts[0].items()]


def verdicts(sides: list[Contender], shares: dict[int, float]) -> list[str]:
    """The targets that were missed, in words."""
    found = []
    plain = next(side for side in sides if side.name == PLAIN)
    level, least = THROUGHPUT
    times = ratio(sides[0], plain, level, rate)
    if times < least:
        found.append(f"{times:.2f} times the tokens/s of {PLAIN} at concurrency {level}, not {least:g}")
    level, most = FIRST_TOKEN
    share = ratio(sides[0], plain, level, first_token)
    if share > most:
        found.append(
            f"{share:.0%} of the time to first token of {PLAIN} at concurrency {level}, not {most:.0%}"
        )
    for level, share in shares.items():
        if share > OVERHEAD:
            found.append(
                f"the gateway adds {share:.1%} to the time to first token at concurrency {level}, not {OVERHEAD:.0%}"
            )
    return found


def main(words: list[str]) -> int:
    """Measure, print the tables, and write them into the README on request; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="folder of runs (the chain runs where it has not)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4, help="of every client in a round")
    parser.add_argument(
        "--pairs", type=int, default=300, help="questions that the gateway's own time is taken of"
    )
    parser.add_argument("--tokens", type=int, default=48, help="of every answer")
    parser.add_argument("--threads", type=int, default=0, help="of each server (0: the machine's cores)")
    parser.add_argument("--port", type=int, default=18100, help="first of the ports to listen on")
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/README.md")
    given = parser.parse_args(words)
    Toolchain(RIVALS).require()
    threads, runs = thread_count(given.threads), given.runs.resolve()
    lines: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="serving-") as scratch,
        ours.deployed(runs, RECIPE, given.port) as deployed,
    ):
        texts = ours.questions(runs, RECIPE)
        sides = own(deployed) + rivals(deployed.bundle, Path(scratch), given.port + 10, threads)
        loader = Loader()
        try:
            for side in sides:
                side.start()
            both = sides[:2]
            sides, left = agreeing(sides, loader, texts[:PROBES], given.tokens)
            if sides[:2] != both:
                raise RuntimeError(" ".join(left))
            measure(sides, loader, texts, given.tokens, given.rounds, given.requests)
            rows, shares = [], {}
            for level in OVERHEAD_LEVELS:
                row, shares[level] = overhead(both, loader, texts[: given.pairs], given.tokens, level)
                rows += row
        finally:
            loader.stop()
            for side in sides:
                side.stop()
    for level in LEVELS:
        lines += table(sides, level)
    busy = max(f.loader_s / f.seconds for side in sides for level in LEVELS for f in side.rounds[level])
    lines += [
        *left,
        "Answers that are Hugging Face's: " + ", ".join(f"{s.name} {s.same[0]} of {s.same[1]}" for s in sides) + ". "
        "Precision: " + ", ".join(f"{s.name} {s.precision}" for s in sides) + ".",
        "",
        "What the gateway adds, by question (median of the differences; the last column is its processor time):",
        "",
        "| concurrency | first token, Triton alone | Triton's protocol | | chat completions | | whole answer | a token |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *rows,
        "",
        f"`{typed('serving', words)}`: {given.rounds} rounds in alternation, {given.requests} answers of {given.tokens} tokens for each client, "
        f"threads: {threads}; the load generator, on the same cores, took up to {busy:.0%} of one. {os.cpu_count()} cores of "
        f"{processor()}, {date.today()}, Python {platform.python_version()}.",
    ]  # fmt: skip
    text = "\n".join(lines)
    print(text)
    missed = verdicts(sides, shares)
    for fault in missed:
        print(f"missed: {fault}")
    if given.write:
        ours.write_section("serving", text)
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
