"""Runs of the light chain with faults, what must hold after each, and the tally."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.runner.store import damage, read_artifact
from pipeline.serving import processes
from pipeline.toolchains import ROOT, Toolchain

SHORT_ID = re.compile(r"[0-9a-f]{12}")
TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Tally:
    """Faults injected, and how many of them ended well, by kind."""

    injected: Counter[str] = field(default_factory=Counter)
    survived: Counter[str] = field(default_factory=Counter)
    looks: int = 0  # of the concurrent readers

    @contextlib.contextmanager
    def fault(self, kind: str) -> Iterator[None]:
        """One fault; it ended well when the body does."""
        self.injected[kind] += 1
        yield
        self.survived[kind] += 1


TALLY = Tally()


class Reader(threading.Thread):
    """Looks at the published artifacts all the time, as any other process could.

    Whatever can be seen under a short id, or through ``latest``, must be whole.
    """

    def __init__(self, runs: Path) -> None:
        super().__init__(daemon=True)
        self.runs = runs
        self.faults: list[str] = []
        self.looks = 0
        self._over = threading.Event()

    def run(self) -> None:
        try:
            while not self._over.wait(0.002):
                self.look()
        except Exception as error:  # a reader that died would find nothing any more
            self.faults.append(f"the reader itself failed: {error!r}")

    def look(self) -> None:
        """One look at everything."""
        self.looks += 1
        for stage in self.runs.glob("*/*"):
            if not stage.is_dir() or stage.name == "quarantine":
                continue
            for path in stage.iterdir():
                if not SHORT_ID.fullmatch(path.name) and path.name != "latest":
                    continue
                target = path.resolve()
                try:
                    faults = damage(target, deep=True)
                except FileNotFoundError:
                    faults = ["gone"]
                # It may have been moved to quarantine since it was listed.
                if faults and target.exists():
                    self.faults.append(f"{path}: {faults[0]}")

    def stop(self) -> None:
        self._over.set()
        self.join()
        self.look()
        TALLY.looks += self.looks


@dataclass
class Light:
    """The light chain with a place of its own for runs."""

    runs: Path
    documents: Path

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """Start a controller; ``environment`` is added to its own and its steps'."""
        command = [str(Toolchain("controller").python), "-m", "tests.faults.light"]
        return subprocess.Popen(
            [*command, str(self.runs), str(self.documents), *words],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # Under nohup the suite ignores it, and so would the controller, as it is asked to.
            preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
        )

    def __call__(self, *words: str, **environment: str) -> tuple[int, str]:
        """Run to the end: exit status and everything it said."""
        process = self.start(*words, **environment)
        output, _ = process.communicate(timeout=120)
        return process.returncode, output

    def published(self) -> dict[str, dict[str, Any]]:
        """Stage to identity, parts, output digest and file digests: what must be the same."""
        found = {}
        for stage in sorted(path for path in (self.runs / "light").iterdir() if (path / "latest").exists()):
            artifact = read_artifact((stage / "latest").resolve())
            assert artifact is not None
            kept = ("identity", "parts", "files", "output_digest", "metrics", "curves")
            found[stage.name] = {name: artifact.manifest[name] for name in kept}
            assert not damage(artifact.path, deep=True)
        return found

    def quarantined(self) -> list[str]:
        """The reasons of what lies in quarantine."""
        return [
            json.loads(path.read_text())["reason"] for path in self.runs.glob("*/quarantine/*/reason.json")
        ]

    def processes(self) -> list[processes.Process]:
        """The living processes that have to do with this place."""
        return [p for p in processes.everything() if any(str(self.runs) in word for word in p.command)]

    def must_end_as(self, whole: dict[str, dict[str, Any]]) -> str:
        """Run again, undisturbed: it must succeed and publish exactly ``whole``."""
        status, output = self()
        assert status == 0, output
        assert self.published() == whole
        assert not self.processes()
        return output


def wait_for_seal(light: Light, controller: subprocess.Popen[str], piece: str) -> None:
    """Wait until the training step at work has sealed a piece of its state, such as ``step_008``."""
    deadline = time.monotonic() + 30
    while True:
        for seals in (light.runs / "light" / "train" / ".work").glob("*/seals.jsonl"):
            if piece in seals.read_text():
                return
        assert controller.poll() is None, controller.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_gone(light: Light, seconds: float = 30) -> None:
    """Wait until no process of a killed chain is left."""
    deadline = time.monotonic() + seconds
    while light.processes() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not light.processes()


def operations(light: Light, shim: Path, log: Path) -> list[tuple[str, str]]:
    """Every file operation of an undisturbed run that changes something: (role:number, name)."""
    status, output = light(LD_PRELOAD=str(shim), FAULT_ROOT=str(light.runs), FAULT_LOG=str(log))
    assert status == 0, output
    found = []
    for line in log.read_text().splitlines():
        role, number, name, *_ = line.split(" ", 4)
        found.append((f"{role}:{number}", name))
    return found


def kill_all(light: Light) -> None:
    """SIGKILL every process of the place at once, as when the power goes."""
    for process in light.processes():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
