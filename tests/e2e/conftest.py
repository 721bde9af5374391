"""The product as a user drives it: the command line, real toolchains, a real server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.toolchains import ROOT, Toolchain


@dataclass
class Lifecycle:
    """The ``lifecycle`` command with its own place for runs and its own ports."""

    runs: Path
    ports: str

    def start(
        self, verb: str, *words: str, settings: str = "", recipe: str = "llama-mini"
    ) -> subprocess.Popen[str]:
        command = [str(Toolchain("controller").python), "-m", "pipeline", verb, recipe]
        command += ["--runs", str(self.runs), "--plain", "--set", f"{self.ports} {settings}", *words]
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(
        self,
        verb: str,
        *words: str,
        settings: str = "",
        recipe: str = "llama-mini",
        code: int = 0,
        timeout_s: float = 1500,
    ) -> str:
        process = self.start(verb, *words, settings=settings, recipe=recipe)
        try:
            output, _ = process.communicate(timeout=timeout_s)
        finally:
            process.kill()  # what hangs must not slow what is tested after it
        assert process.returncode == code, output
        return output

    def record(self, verb: str, *words: str) -> str:
        """A verb that reads the record of all recipes: trace, diff, gc."""
        command = [str(Toolchain("controller").python), "-m", "pipeline", verb, *words]
        done = subprocess.run(
            [*command, "--runs", str(self.runs)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def latest(self, stage: str, recipe: str = "llama-mini") -> Path:
        return (self.runs / recipe / stage / "latest").resolve()

    def copy(self, folder: Path, stages: tuple[str, ...], recipe: str = "llama-mini") -> Lifecycle:
        """Another place for runs that has the artifacts of these stages."""
        other = Lifecycle(folder / "runs", free_ports())
        for stage in stages:
            hidden = shutil.ignore_patterns(".*")
            shutil.copytree(
                self.runs / recipe / stage, other.runs / recipe / stage, symlinks=True, ignore=hidden
            )
        return other

    def kill_step(self, stage: str, recipe: str = "llama-mini", settings: str = "") -> str:
        """Start a training stage and kill -9 its process after its first checkpoint.

        Returns what the controller said; it must have ended with status 1.
        """
        process = self.start(stage, recipe=recipe, settings=settings)
        self.wait_for_checkpoint(stage, process, recipe)
        job = next((self.runs / recipe / stage / ".work").glob("*/job.json"))
        found = subprocess.run(["pgrep", "-f", str(job)], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 1, output
        return output

    def wait_for_checkpoint(
        self, stage: str, process: subprocess.Popen[str], recipe: str = "llama-mini"
    ) -> None:
        """Wait until a training stage at work has a sealed checkpoint."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            for seals in (self.runs / recipe / stage / ".work").glob("*/seals.jsonl"):
                if '"state/checkpoints/' in seals.read_text():
                    return
            time.sleep(0.02)
        raise AssertionError(f"{stage} wrote no checkpoint")

    def log(self, stage: str, recipe: str = "llama-mini") -> str:
        """The log of a finished step, all attempts."""
        name = self.latest(stage, recipe).name
        return (self.runs / recipe / stage / ".logs" / name / "log.txt").read_text()


def free_ports() -> str:
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    http, grpc, metrics = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return f"deploy.http_port={http} deploy.grpc_port={grpc} deploy.metrics_port={metrics}"


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lifecycle]:
    """The miniature recipe, run once to an answering server; stopped at the end."""
    lifecycle = Lifecycle(tmp_path_factory.mktemp("runs"), free_ports())
    try:
        lifecycle("run")
        yield lifecycle
    finally:
        lifecycle("stop")
