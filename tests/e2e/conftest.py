"""The product as a user drives it: the command line, real toolchains, a real server."""

from __future__ import annotations

import os
import socket
import subprocess
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
        self, verb: str, *words: str, settings: str = "", recipe: str = "llama-mini", code: int = 0
    ) -> str:
        process = self.start(verb, *words, settings=settings, recipe=recipe)
        output, _ = process.communicate(timeout=1500)
        assert process.returncode == code, output
        return output

    def latest(self, stage: str) -> Path:
        return (self.runs / "llama-mini" / stage / "latest").resolve()


def free_ports() -> str:
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    http, grpc, metrics = (each.getsockname()[1] for each in sockets)
    for each in sockets:
        each.close()
    return f"deploy.http_port={http} deploy.grpc_port={grpc} deploy.metrics_port={metrics}"


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Lifecycle:
    """The miniature recipe, run once to an answering server; stopped at the end."""
    lifecycle = Lifecycle(tmp_path_factory.mktemp("runs"), free_ports())
    try:
        lifecycle("run")
        yield lifecycle
    finally:
        lifecycle("stop")
