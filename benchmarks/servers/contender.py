"""Servers as contenders: started, asked by the load generator, watched, stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.runner.execute import step_environment
from pipeline.serving import processes
from pipeline.toolchains import ROOT, Toolchain

LOADER = "gateway"  # the toolchain of the load generator
START_S = 180.0
TICKS = os.sysconf("SC_CLK_TCK")


def processor_seconds(pid: int) -> float:
    """Processor time of one process so far, its ended children included."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return sum(map(int, stat[11:15])) / TICKS


def resident_mb(pid: int) -> float:
    """Resident memory of one process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@dataclass
class Round:
    """What one order brought: answers as :class:`benchmarks.load.Answer` has them, processor time by process."""

    seconds: float
    answers: list[dict[str, Any]]
    processor_s: dict[str, float]
    loader_s: float

    @property
    def tokens(self) -> int:
        """Tokens of all answers."""
        return sum(answer["tokens"] for answer in self.answers)

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def values(self, name: str, target: int = 0) -> list[float]:
        """A figure of each answer of a target that has it."""
        return [a[name] for a in self.answers if a["target"] == target and a[name] is not None]


@dataclass
class Contender:
    """A server.  ``target`` is a :class:`benchmarks.load.Target` as JSON; ``command`` is None where it runs already."""

    name: str
    target: dict[str, Any]
    precision: str
    command: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    pids: dict[str, int] = field(default_factory=dict)
    rounds: dict[int, list[Round]] = field(default_factory=dict)
    same: tuple[int, int] = (0, 0)
    process: Any = None
    log: Any = None

    def start(self) -> None:
        """Start, and wait until it listens.  Raises ``RuntimeError`` with the end of its log."""
        if self.command is None:
            return
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115, read when the process fails
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=self.log,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + START_S
        while not _healthy(f"{self.target['address']}/health"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not start:\n{self.said()}")
            time.sleep(0.2)
        self.pids = {"server": self.process.pid}

    def said(self) -> str:
        """The end of its log."""
        self.log.seek(0)
        return str(self.log.read()[-3000:])

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            for each in processes.of_session(self.process.pid):
                os.kill(each.pid, signal.SIGKILL)
            self.process.wait()
            self.log.close()


class Loader:
    """The load generator, a process of its own."""

    def __init__(self) -> None:
        python = str(Toolchain(LOADER).python)
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.load"],
            cwd=ROOT, env=step_environment(Toolchain(LOADER), 1), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, order: dict[str, Any], pids: dict[str, int]) -> Round:
        """Carry out an order; processor time is that of ``pids`` meanwhile.

        Raises ``RuntimeError`` for a request that was not answered as it should be.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        before = {name: processor_seconds(pid) for name, pid in pids.items()}
        own = processor_seconds(self.process.pid)
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the load generator ended with {self.process.wait()}")
        found = json.loads(line)
        faults = [answer["why"] for answer in found["answers"] if answer["outcome"] != "ok"]
        if faults:
            raise RuntimeError(
                f"{len(faults)} of {len(found['answers'])} requests to "
                f"{', '.join(target['address'] for target in order['targets'])} were not answered: {faults[0]}"
            )
        spent = {name: processor_seconds(pid) - before[name] for name, pid in pids.items()}
        return Round(found["seconds"], found["answers"], spent, processor_seconds(self.process.pid) - own)

    def stop(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
