"""Half an hour of mixed load: no failed or broken answer, and memory that stays where it is.

    make soak
    .venvs/gateway/bin/python -m benchmarks.soak --minutes 30 --write
    .venvs/gateway/bin/python -m benchmarks.soak --minutes 1.5 --address http://127.0.0.1:8000 --pid gateway=4711

Clients ask at random, of a fixed seed: short and long prompts, streams and whole answers, OpenAI's protocol and
Triton's, to the model's own end or for a fixed number of tokens; some hang up at a random point, at once or in
the middle, and some ask for what must be refused.  All answers are greedy: the same question must have the same answer every time.

Before the clock starts, long prompts that never come again fill the key-value cache, until the processes stop
growing.  Memory is flat when the resident size of no process grows, by the slope of Theil and Sen over all samples after the
warm-up, by more than ``GROWTH`` of its median or ``GROWTH_MB``, whichever is more, in the time that was looked at.
The slope is the median of the slopes of all pairs: a single step or spike does not move it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.load import (
    OK,
    OPENAI,
    TRITON,
    Answer,
    Figures,
    Question,
    Target,
    ask,
    client,
)
from benchmarks.servers import ours
from benchmarks.servers.contender import resident_mb
from pipeline.runner.provenance import processor
from pipeline.toolchains import ROOT

RECIPE = "llama-tiny"
WARM_UP = 0.25  # of the time; the allocators settle
FILL_S = 300.0  # at most, for the key-value cache
FULL_MB, FULL_LOOKS, LOOK_S = (
    1.0,
    3,
    5.0,
)  # the cache is full when nothing grew by so much, so many looks in a row
GROWTH, GROWTH_MB = 0.03, 8.0
PAUSE_S = 0.2  # mean time between a client's requests
POOL = 200  # different prompts, so that questions come again
LONG = 5  # questions of a long prompt; the tiny model reads 256 tokens, the answer's among them
EXTRA = {OPENAI: {"ignore_eos": True}, TRITON: {"ignore_end": True}}
WRONG: dict[str, list[tuple[dict[str, Any], int]]] = {
    OPENAI: [
        ({"max_tokens": -1}, 400),
        ({"model": "nobody"}, 404),
        ({"temperature": "hot"}, 400),
        ({"messages": []}, 400),
        ({"messages": [{"role": "user", "content": "word " * 2000}]}, 400),
    ],
    TRITON: [({"max_tokens": 0}, 400), ({"nonsense": 1}, 400), ({"messages": "no JSON"}, 400)],
}


@dataclass
class Report:
    """What a soak saw; memory in MB by process, as ``(seconds, MB)``.

    ``filling``: MB that a process may grow by besides, as a cache of it fills that is empty when it starts.
    """

    seconds: float
    filling: dict[str, float] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    memory: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    gone: list[str] = field(default_factory=list)

    def counted(self, name: str) -> list[tuple[float, float]]:
        """The samples of a process after the warm-up."""
        return [(at, size) for at, size in self.memory[name] if at >= WARM_UP * self.seconds]

    def growth_mb(self, name: str) -> float:
        """How much a process grew after the warm-up, by the slope."""
        samples = self.counted(name)
        return slope(samples) * (samples[-1][0] - samples[0][0])

    def bound_mb(self, name: str) -> float:
        """How much it may have grown."""
        median = statistics.median(size for _, size in self.counted(name))
        return max(GROWTH_MB, GROWTH * median) + self.filling.get(name, 0.0)

    def faults(self) -> list[str]:
        """Everything that must not be, in words."""
        figures = Figures.of(self.answers, self.seconds)
        found = [f"{name} ended" for name in self.gone]
        found += (
            [f"{len(figures.faults)} failed or broken answers: {figures.faults[0]}"] if figures.faults else []
        )
        found += [f"{len(self.changed)} changed answers: {self.changed[0]}"] if self.changed else []
        found += [] if figures.outcomes.get(OK) else ["not one answer"]
        for name in self.memory:
            if name not in self.gone and self.growth_mb(name) > self.bound_mb(name):
                found.append(
                    f"{name} grew by {self.growth_mb(name):.1f} MB after the warm-up; {self.bound_mb(name):.1f} would do"
                )
        return found


def slope(samples: Sequence[tuple[float, float]]) -> float:
    """The median slope of all pairs (Theil 1950, Sen 1968); 0 for fewer than two samples."""
    pairs = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(samples, 2) if b[0] > a[0]]
    return statistics.median(pairs) if pairs else 0.0


def prompts(texts: Sequence[str]) -> list[str]:
    """Short prompts, and a quarter as many long ones: several questions in one."""
    short = list(texts[: POOL * 4 // 5])
    return short + [" ".join(texts[place : place + LONG]) for place in range(POOL // 5)]


def question(protocol: str, pool: Sequence[str], chance: random.Random) -> Question:
    """A random request of the mixture."""
    kind, text = chance.random(), chance.choice(pool)
    asked = Question([_user(text)], chance.choice((8, 24, 64)), exact=chance.random() < 0.5)
    if kind < 0.1:
        wrong, status = chance.choice(WRONG[protocol])
        return replace(asked, stream=chance.random() < 0.5, wrong=wrong, status=status)
    if kind < 0.25:
        return replace(asked, leave_after=chance.choice((0, 1, chance.randrange(asked.max_tokens))))
    return replace(asked, stream=kind < 0.85)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


async def fill(
    address: str, model: str, pids: dict[str, int], texts: Sequence[str], key: str, clients: int
) -> float:
    """Ask what was never asked until no process grows any more, ``FILL_S`` at most; returns the seconds that it took."""
    target = Target(TRITON, address, model, key, EXTRA[TRITON])
    numbers, began, full = itertools.count(), time.perf_counter(), asyncio.Event()

    async def ask_on(session: Any) -> None:
        while not full.is_set():
            number = next(numbers)
            words = f"{number} " + " ".join(texts[(number + step) % len(texts)] for step in range(LONG))
            await ask(session, target, Question([_user(words)], 1))

    async def watch() -> None:
        sizes, still = [resident_mb(pid) for pid in pids.values()], 0
        while still < FULL_LOOKS and time.perf_counter() - began < FILL_S:
            await asyncio.sleep(LOOK_S)
            now = [resident_mb(pid) for pid in pids.values()]
            still = still + 1 if max(b - a for a, b in zip(sizes, now, strict=True)) < FULL_MB else 0
            sizes = now
        full.set()

    async with client() as session:
        await asyncio.gather(watch(), *(ask_on(session) for _ in range(clients)))
    return time.perf_counter() - began


async def soak(
    address: str,
    model: str,
    pids: dict[str, int],
    texts: Sequence[str],
    minutes: float,
    *,
    key: str = "",
    protocols: Sequence[str] = (OPENAI, TRITON),
    clients: int = 12,
    every_s: float = 10.0,
    seed: int = 0,
    filling: dict[str, float] | None = None,
) -> Report:
    """Load the server at ``address`` (``http://host:port``) for so long, and watch its processes (``pids`` by name).

    ``texts`` are questions, some two hundred; memory is looked at every ``every_s`` seconds.  Whoever has not called
    :func:`fill` says by ``filling`` what the cache may still grow by, as :class:`Report` has it.
    """
    report = Report(minutes * 60, filling or {}, memory={name: [] for name in pids})
    targets = [Target(protocol, address, model, key, EXTRA[protocol]) for protocol in protocols]
    pool = prompts(texts)
    said: dict[tuple[Any, ...], str] = {}
    began = time.perf_counter()

    async def ask_on(session: Any, place: int) -> None:
        chance = random.Random(seed * 1000 + place)
        while time.perf_counter() - began < report.seconds:
            target = chance.choice(targets)
            asked = question(target.protocol, pool, chance)
            answer = await ask(session, target, asked)
            if answer.outcome == OK:
                same = (asked.messages[0]["content"], asked.max_tokens, asked.exact)
                if said.setdefault(same, answer.text) != answer.text:
                    report.changed.append(f"{answer.text!r}, before {said[same]!r}")
            answer.text = ""  # half an hour of them
            report.answers.append(answer)
            await asyncio.sleep(chance.expovariate(1 / PAUSE_S))

    async def watch() -> None:
        while True:
            for name, pid in pids.items():
                try:
                    report.memory[name].append((time.perf_counter() - began, resident_mb(pid)))
                except OSError:
                    report.gone.append(name)
                    return
            await asyncio.sleep(every_s)

    async with client() as session:
        watching = asyncio.ensure_future(watch())
        await asyncio.gather(*(ask_on(session, place) for place in range(clients)))
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
    report.seconds = time.perf_counter() - began
    return report


def told(report: Report) -> list[str]:
    """The report as Markdown."""
    figures = Figures.of(report.answers, report.seconds)
    outcomes = ", ".join(f"{count:,} {name}" for name, count in sorted(figures.outcomes.items()))
    lines = [f"{len(report.answers):,} requests in {report.seconds / 60:.1f} minutes: {outcomes}."]
    if figures.first and figures.between:
        lines[0] += (
            f" First token {figures.first.median * 1e3:.0f} ms (99%: {figures.first.p99 * 1e3:.0f}), further tokens "
            f"{figures.between.median * 1e3:.1f} ms (99%: {figures.between.p99 * 1e3:.1f})."
        )
    lines += [
        "",
        "| memory, MB | after the warm-up | at the end | most | growth by the slope | may be |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in report.memory:
        sizes = [size for _, size in report.counted(name)]
        lines.append(
            f"| {name} | {sizes[0]:,.1f} | {sizes[-1]:,.1f} | {max(sizes):,.1f} | {report.growth_mb(name):+.1f} | "
            f"{report.bound_mb(name):.1f} |"
        )
    return lines


@contextlib.contextmanager
def _deployed(runs: Path, port: int) -> Iterator[tuple[str, str, dict[str, int]]]:
    with ours.deployed(runs, RECIPE, port) as deployed:
        yield deployed.gateway, deployed.model, deployed.pids


def pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    """``name=value`` words, taken apart."""
    return [(name, value) for name, _, value in (word.partition("=") for word in words)]


def main(words: list[str]) -> int:
    """Soak, print, and write into the README on request; 1 where something was not as it must be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two looks at the memory")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--runs", type=Path, default=ROOT / "runs", help="folder of runs (the chain runs where it has not)"
    )
    parser.add_argument("--port", type=int, default=18100, help="first of the ports to listen on")
    parser.add_argument("--address", help="a server that runs already, http://host:port")
    parser.add_argument("--model", default="assistant")
    parser.add_argument("--key", default="", help="its API key")
    parser.add_argument(
        "--pid", action="append", default=[], help="name=id of a process of it, to be watched"
    )
    parser.add_argument(
        "--filling",
        action="append",
        default=[],
        help="name=MB that a process may grow by, as its cache fills",
    )
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    given = parser.parse_args(words)
    runs = given.runs.resolve()
    filling = {name: float(size) for name, size in pairs(given.filling)}
    settings = {"clients": given.clients, "every_s": given.every, "seed": given.seed, "filling": filling}
    place = (
        contextlib.nullcontext(
            (given.address, given.model, {name: int(pid) for name, pid in pairs(given.pid)})
        )
        if given.address
        else _deployed(runs, given.port)
    )
    with place as (address, model, pids):
        texts = ours.questions(runs, RECIPE)
        filled = 0.0
        if pids and not filling:
            filled = asyncio.run(fill(address, model, pids, texts, given.key, given.clients))
        report = asyncio.run(soak(address, model, pids, texts, given.minutes, key=given.key, **settings))
    faults = report.faults()
    text = "\n".join(
        [
            *told(report), "",
            f"`python -m benchmarks.soak --minutes {given.minutes:g}`, after {filled:.0f} s that filled the cache: {given.clients} clients, {os.cpu_count()} cores of "
            f"{processor()}, {date.today()}, Python {platform.python_version()}.",
        ]
    )  # fmt: skip
    print(text)
    for fault in faults:
        print(f"fault: {fault}")
    if given.write:
        ours.write_section("soak", text)
    return 1 if faults else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
