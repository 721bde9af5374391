"""NVIDIA AIPerf against the gateway: time to first token, inter-token latency and throughput by concurrency.

    make bench-serve
    .venvs/controller/bin/python -m benchmarks.aiperf --write

AIPerf is what NVIDIA measures its own servers with (https://github.com/ai-dynamo/aiperf).  It makes prompts of
``INPUT`` tokens by the model's own tokenizer, asks for answers of ``OUTPUT`` tokens, greedy and past the end
token, and keeps as many requests under way as the concurrency says.  Token counts are the server's.  It runs in
several processes on the same machine, so on few cores it takes from the server what it uses itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.plots import side_by_side
from benchmarks.servers import ours
from pipeline.runner.execute import step_environment
from pipeline.runner.provenance import processor
from pipeline.toolchains import ROOT, Toolchain, pins

LEVELS = (1, 4, 16, 64)
INPUT, OUTPUT = 64, 64
LEAST = 40  # requests of a level
PLOT = ROOT / "benchmarks" / "plots" / "serving.svg"
# Nothing is to be fetched: there is nobody at the hub's address.  (With HF_HUB_OFFLINE AIPerf looks even a folder up
# in the hub's cache.)
NOWHERE = "http://127.0.0.1:9"


@dataclass(frozen=True)
class Level:
    """One run; times in milliseconds as AIPerf has them, each with ``p50``, ``p99`` and others."""

    concurrency: int
    requests: int
    first: dict[str, float]
    between: dict[str, float]
    whole: dict[str, float]
    tokens_per_s: float
    requests_per_s: float

    @classmethod
    def read(cls, concurrency: int, file: Path) -> Level:
        """From ``profile_export_aiperf.json``.

        Raises ``RuntimeError`` where a request failed or an answer had another length.
        """
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        rate, wrong = found["request_error_rate"]["avg"], found["osl_mismatch_count"]["avg"]
        if rate or wrong or not found["is_complete"]:
            raise RuntimeError(
                f"at concurrency {concurrency} {rate:.1f}% of the requests failed and {wrong:.0f} answers had another "
                f"length: {found['error_summary']}"
            )
        return cls(
            concurrency,
            int(found["request_count"]["avg"]),
            found["time_to_first_token"],
            found["inter_token_latency"],
            found["request_latency"],
            found["output_token_throughput"]["avg"],
            found["request_throughput"]["avg"],
        )


def command(deployed: ours.Deployed, concurrency: int, requests: int, output: Path) -> list[str]:
    """AIPerf's command line."""
    return [
        str(Toolchain("bench-serving").folder / "bin" / "aiperf"), "profile",
        "--model", deployed.model, "--url", deployed.gateway, "--endpoint-type", "chat", "--streaming",
        "--tokenizer", str(deployed.bundle), "--isl", str(INPUT), "--isl-stddev", "0",
        "--osl", str(OUTPUT), "--osl-stddev", "0", "--extra-inputs", "ignore_eos:true", "--extra-inputs", "temperature:0",
        "--concurrency", str(concurrency), "--request-count", str(requests),
        "--warmup-request-count", str(max(8, concurrency)), "--random-seed", "1", "--use-server-token-count",
        "--workers-max", "1", "--ui", "none", "--no-gpu-telemetry", "--no-server-metrics",
        "--output-artifact-dir", str(output),
    ]  # fmt: skip


def run(deployed: ours.Deployed, concurrency: int, requests: int, output: Path) -> Level:
    """Run AIPerf at one concurrency.  Raises ``RuntimeError`` when it fails."""
    environment = step_environment(Toolchain("bench-serving"), 1)
    environment = {
        k: v for k, v in environment.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    }
    done = subprocess.run(
        command(deployed, concurrency, requests, output), env=environment | {"HF_ENDPOINT": NOWHERE}, cwd=output.parent,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"aiperf ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return Level.read(concurrency, output / "profile_export_aiperf.json")


def table(levels: list[Level]) -> list[str]:
    """Rows by concurrency."""
    lines = [
        "| concurrency | requests | first token, ms (median) | 99% | further token, ms (median) | 99% | whole answer, ms (median) | 99% | tokens/s | requests/s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for level in levels:
        first, between, whole = (
            " | ".join(f"{times[name]:,.{digits}f}" for name in ("p50", "p99"))
            for times, digits in ((level.first, 1), (level.between, 2), (level.whole, 0))
        )
        lines.append(
            f"| {level.concurrency} | {level.requests} | {first} | {between} | {whole} | {level.tokens_per_s:,.0f} | "
            f"{level.requests_per_s:,.1f} |"
        )
    return lines


def plot(levels: list[Level]) -> str:
    """The table as a picture."""

    def line(figure: str, name: str) -> list[tuple[float, float]]:
        return [(level.concurrency, getattr(level, figure)[name]) for level in levels]

    return side_by_side(
        {
            "time to first token, ms": {"median": line("first", "p50"), "99%": line("first", "p99")},
            "further token, ms": {"median": line("between", "p50"), "99%": line("between", "p99")},
            "tokens/s": {"all clients": [(level.concurrency, level.tokens_per_s) for level in levels]},
        },
        "concurrency",
    )


def main(words: list[str]) -> int:
    """Measure, print the table, and write it and the plot on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="llama-tiny")
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="folder of runs (the chain runs where it has not)"
    )
    parser.add_argument("--each", type=int, default=10, help="requests of every client")
    parser.add_argument("--port", type=int, default=18100, help="first of the ports to listen on")
    parser.add_argument(
        "--write", action="store_true", help="write the table into benchmarks/README.md, and the plot"
    )
    given = parser.parse_args(words)
    toolchain = Toolchain("bench-serving")
    toolchain.require()
    levels = []
    with (
        tempfile.TemporaryDirectory(prefix="aiperf-") as scratch,
        ours.deployed(given.runs.resolve(), given.recipe, given.port) as deployed,
    ):
        for concurrency in LEVELS:
            requests = max(LEAST, given.each * concurrency)
            levels.append(run(deployed, concurrency, requests, Path(scratch) / str(concurrency)))
            print(f"concurrency {concurrency}: {levels[-1].tokens_per_s:,.0f} tokens/s", flush=True)
    text = "\n".join(
        [
            *table(levels), "",
            f"`make bench-serve`: aiperf {version()}, {given.recipe}, prompts of {INPUT} tokens and the chat template, answers of {OUTPUT}, "
            f"on the cores of the server: {os.cpu_count()} cores of {processor()}, {date.today()}, Python {platform.python_version()}.",
        ]
    )  # fmt: skip
    print(text)
    if given.write:
        ours.write_section("aiperf", text)
        PLOT.parent.mkdir(exist_ok=True)
        PLOT.write_text(plot(levels), encoding="utf-8")
    return 0


def version() -> str:
    """AIPerf's, as it is pinned."""
    return pins(Toolchain("bench-serving").lock)["aiperf"]


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
