"""Training beside others: real tokens a second in SFT and DPO, and the share of the matmul peak.

    make bench-training
    .venvs/controller/bin/python -m benchmarks.training --rounds 10 --write

The recipe's model (randomly initialised), data and settings for everybody: the project's
recipe classes on AutoModel, TRL's trainers as they come, and two plain PyTorch loops
(``benchmarks/trainers``).  Each contender is a process of its own with the same threads; they
are set up and warmed up one after the other, and then take turns at a few steps each, so
that what else the machine does falls on all of them.  Ratios are medians over rounds.

On a machine that others use too, ``--threads 1 --clock processor`` counts the processor
time of the process instead of the time that passed: waiting for a core then costs nobody
anything, and with one thread nothing else is lost between the two.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.trainers.work import Shape, Work
from benchmarks.typed import typed
from pipeline import recipe as recipes
from pipeline.runner.execute import step_environment
from pipeline.runner.provenance import processor
from pipeline.threads import thread_count
from pipeline.toolchains import ROOT, Toolchain

MARKS = ("<!-- training -->", "<!-- /training -->")
TARGETS = {"trl_side": 1.5, "bare": 0.95}  # ours is at least so many times as quick
RECIPE = "llama-tiny"
PEAK = "peak"
CLOCKS = {"wall": "time as it passed", "processor": "processor time, on a machine in use by others"}
BF16, FP32 = "torch.bfloat16", "torch.float32"


@dataclass
class Contender:
    """One process that trains a few steps at a time."""

    name: str
    module: str
    words: tuple[str, ...] = ()
    clock: str = "wall"
    runs: list[dict[str, Any]] = field(default_factory=list)
    process: Any = None
    log: Any = None

    def start(self, folder: Path, kind: str, warm_up: int, threads: int) -> None:
        """Start, and wait until it is warm."""
        command = [str(Toolchain("core").python), "-m", f"benchmarks.trainers.{self.module}"]
        environment = step_environment(Toolchain("core"), threads)
        if "PYTHONPATH" in os.environ:
            environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, read when the process fails
        self.process = subprocess.Popen(
            [*command, str(folder), kind, str(warm_up), *self.words],
            cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
        )  # fmt: skip
        self._answer()

    def run(self, steps: int) -> None:
        """Run some steps and keep their figures."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        self.runs.append(self._answer())

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.stdin.close()
            self.process.wait(timeout=60)
            self.process.stdout.close()
            self.log.close()

    def _answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise RuntimeError(f"{self.name} ended with {self.process.wait()}:\n{self.log.read()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        if self.clock == "processor":
            found["seconds"] = found["processor_s"]
        return found

    def rates(self) -> list[float]:
        """Real tokens a second of each round."""
        return [run["tokens"] / run["seconds"] for run in self.runs]

    def flops(self, shape: Shape) -> float:
        """Wanted floating-point operations a second, median."""
        return statistics.median(
            Work(run["tokens"], run["squares"], run["labels"]).flops(shape) / run["seconds"]
            for run in self.runs
        )


def contenders(kind: str, packing: bool) -> list[Contender]:
    """Ours as the recipe has it first; ``packing`` is the recipe's setting."""
    other = str(not packing).lower()
    name = "off" if packing else "on"
    own = [
        Contender(f"ours, the recipe's settings (packing {'on' if packing else 'off'})", "ours"),
        Contender(f"ours, packing {name}", "ours", (f"packing={other}",)),
        Contender("ours, fp32", "ours", ("precision=fp32",)),
        Contender(f"ours, fp32, packing {name}", "ours", ("precision=fp32", f"packing={other}")),
    ]
    trl = [Contender("TRL's defaults", "trl_side")]
    if kind == "dpo":
        own.append(Contender("ours, live reference", "ours", ("reference=live",)))
    else:
        trl.append(Contender("TRL without checkpointing", "trl_side", ("gradient_checkpointing=false",)))
    return [
        *own, *trl,
        Contender("bare loop", "bare"),
        Contender("bare loop, like lengths together, logits at labels", "bare", ("like-lengths",)),
    ]  # fmt: skip


def ratio(one: Contender, other: Contender) -> float:
    """How many times as quick the first is: the median over the rounds."""
    return statistics.median(a / b for a, b in zip(one.rates(), other.rates(), strict=True))


def prepare(folder: Path, runs: Path, threads: int, steps: int) -> tuple[Shape, dict[str, bool]]:
    """Curate where that has not been done, and make the data and the model.

    Returns the model's shape, and whether the recipe packs by kind.
    """
    curated = runs / RECIPE / "curate" / "latest"
    if not curated.exists():
        controller = [str(Toolchain("controller").python), "-m", "pipeline", "curate", RECIPE, "--plain"]
        subprocess.run([*controller, "--runs", str(runs)], cwd=ROOT, check=True)
    settings = recipes.load(RECIPE, ROOT).settings
    for section in (settings.train, settings.align):
        section.max_steps = steps
        section.warmup_steps = min(section.warmup_steps, steps - 1)
    job = {
        "stage": "train", "module": "benchmarks.training", "recipe": RECIPE, "identity": "0" * 64,
        "settings": {name: asdict(getattr(settings, name)) for name in ("model", "train", "align", "launch")},
        "inputs": {"data": str(curated.resolve())}, "work": str(folder / "work"), "threads": threads,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    subprocess.run(
        [str(Toolchain("core").python), "-m", "benchmarks.trainers.data", str(folder)],
        cwd=ROOT, env=step_environment(Toolchain("core"), threads), check=True,
    )  # fmt: skip
    return Shape.of(asdict(settings.model)), {"sft": settings.train.packing, "dpo": settings.align.packing}


def measure(
    kind: str, sides: list[Contender], folder: Path, threads: int, rounds: int, steps: int, warm_up: int
) -> None:
    """Run the contenders in turn, each round beginning with another one."""
    try:
        for side in sides:
            side.start(folder, kind, warm_up, threads)
        for number in range(rounds):
            for place in range(len(sides)):
                sides[(number + place) % len(sides)].run(steps)
            print(f"{kind}, round {number + 1} of {rounds}: " + ", ".join(
                f"{side.name} {side.rates()[-1]:,.0f}" for side in sides if side.module != PEAK
            ), flush=True)  # fmt: skip
    finally:
        for side in sides:
            side.stop()


def table(sides: list[Contender], peak: Contender, shape: Shape) -> list[str]:
    """Rows of one comparison; the first side is ours."""
    bf16 = statistics.median(run[BF16] for run in peak.runs)
    lines = [
        "| | tokens/s (median) | least | most | ours is | GFLOP/s | of the bf16 peak |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side in sides:
        rates, flops = side.rates(), side.flops(shape)
        times = "" if side is sides[0] else f"{ratio(sides[0], side):.2f}x"
        lines.append(
            f"| {side.name} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | {max(rates):,.0f} | "
            f"{times} | {flops / 1e9:,.1f} | {flops / bf16:.1%} |"
        )
    return lines


def verdicts(kind: str, sides: list[Contender]) -> list[str]:
    """The targets that were missed, in words."""
    found = []
    for module, least in TARGETS.items():
        for side in sides:
            if side.module == module and (module == "bare" or side.name == "TRL's defaults"):
                times = ratio(sides[0], side)
                if times < least:
                    found.append(f"{kind}: {times:.2f} times as quick as {side.name}, not {least}")
    return found


def main(words: list[str]) -> int:
    """Measure, print the tables, and write them into the README on request; 1 where a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="folder of runs with the curated data (made there)"
    )
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of a contender's turn")
    parser.add_argument("--warm-up", type=int, default=4, help="steps before the first turn")
    parser.add_argument("--threads", type=int, default=0, help="of each contender (0: the machine's cores)")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--kind", choices=("sft", "dpo"), action="append", help="one of them only")
    parser.add_argument("--only", default="", help="contenders whose name holds one of these words, a|b|c")
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/README.md")
    given = parser.parse_args(words)
    threads = thread_count(given.threads)
    lines, missed = [], []
    with tempfile.TemporaryDirectory(prefix="training-") as scratch:
        folder = Path(scratch)
        needed = given.warm_up + given.rounds * given.steps + 1
        shape, packing = prepare(folder, given.runs.resolve(), threads, needed)
        for kind in given.kind or ("sft", "dpo"):
            sides = [
                s
                for s in contenders(kind, packing[kind])
                if not given.only or any(w in s.name for w in given.only.split("|"))
            ]
            peak = Contender(PEAK, PEAK)
            for side in sides:
                side.clock = given.clock
            measure(kind, [*sides, peak], folder, threads, given.rounds, given.steps, given.warm_up)
            tokens = statistics.median(run["tokens"] for run in sides[0].runs) / given.steps
            fp32, bf16 = (statistics.median(run[name] for run in peak.runs) / 1e9 for name in (FP32, BF16))
            lines += [
                f"{kind.upper()} ({tokens:,.0f} tokens a step; matmul peak {bf16:,.0f} GFLOP/s in bf16, {fp32:,.0f} in fp32):",
                "", *table(sides, peak, shape), "",
            ]  # fmt: skip
            missed += verdicts(kind, sides)
    lines.append(
        f"`{typed('training', words)}`: {given.rounds} rounds of {given.steps} steps in alternation, threads: {threads}, {CLOCKS[given.clock]}, "
        f"{os.cpu_count()} cores of {processor()}, {date.today()}, Python {platform.python_version()}."
    )
    text = "\n".join(lines)
    print(text)
    for fault in missed:
        print(f"missed: {fault}")
    if given.write:
        readme = ROOT / "benchmarks" / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
