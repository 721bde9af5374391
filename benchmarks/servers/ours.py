"""The recipe's own server, deployed for a benchmark and stopped again."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.serving import processes, server, service
from pipeline.toolchains import ROOT, Toolchain

PORTS = ("http_port", "grpc_port", "metrics_port")


@dataclass(frozen=True)
class Deployed:
    """A deployed recipe: addresses as ``http://host:port``, and its processes by what they do."""

    gateway: str
    triton: str
    model: str
    bundle: Path
    pids: dict[str, int]


def command(runs: Path, recipe: str, verb: str, *words: str) -> list[str]:
    """The command line of a verb."""
    python = str(Toolchain("controller").python)
    return [python, "-m", "pipeline", verb, recipe, "--runs", str(runs), *words]


@contextmanager
def deployed(runs: Path, recipe: str, port: int, settings: str = "") -> Iterator[Deployed]:
    """Run the recipe's chain where needed, with these settings, and serve it at ``port`` and the two after it.

    It is stopped at the end.

    Raises ``RuntimeError`` when that fails.
    """
    ports = " ".join(f"deploy.{name}={port + place}" for place, name in enumerate(PORTS))
    _call(command(runs, recipe, "deploy", "--plain", "--set", f"{ports} {settings}"))
    try:
        yield look(runs, recipe)
    finally:
        _call(command(runs, recipe, "stop"))


def look(runs: Path, recipe: str) -> Deployed:
    """The recipe's server as it runs."""
    record = service.read(runs / recipe / "deploy" / "server.json")
    if record is None or service.fault(record):
        raise RuntimeError(f"{recipe} is not deployed in {runs}: {service.status_text(record)}")
    version = record.version
    model = next(each.pid for each in processes.of_session(version.pid) if server.STUB in each.command[0])
    return Deployed(
        gateway=record.gateway.url,
        triton=f"http://{version.address}",
        model=version.model_name,
        bundle=Path(record.export) / "bundle",
        pids={"gateway": record.gateway.process.pid, "tritonserver": version.pid, "model": model},
    )


def questions(runs: Path, recipe: str) -> list[str]:
    """The questions of the curated test split, in an order that is always the same."""
    file = runs / recipe / "curate" / "latest" / "sft" / "test.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    found = [json.loads(line)["messages"][0]["content"] for line in lines]
    random.Random(0).shuffle(found)
    return found


def write_section(name: str, text: str) -> None:
    """Put a text between the marks of that name in ``benchmarks/README.md``."""
    readme = ROOT / "benchmarks" / "README.md"
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = readme.read_text(encoding="utf-8").partition(first)
    _, _, after = rest.partition(last)
    readme.write_text(f"{before}{first}\n{text}\n{last}{after}", encoding="utf-8")


def _call(words: list[str]) -> None:
    done = subprocess.run(
        words, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[2:5])} ended with {done.returncode}:\n{done.stdout[-3000:]}")
