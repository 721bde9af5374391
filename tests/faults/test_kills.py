"""SIGKILL at random times: the light chain, and the miniature recipe with real training."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.runner.store import read_artifact
from pipeline.toolchains import ROOT, Toolchain
from tests.faults.conftest import FULL
from tests.faults.harness import TALLY, Light, Reader, kill_all, wait_gone

LIGHT_KILLS = 200 if FULL else 16
REAL_KILLS = int(os.environ.get("FAULT_KILLS", "200"))
LONGEST_S = 20.0  # a training step of the miniature recipe takes 10 to 15 s
# One thread a process: two chains then run side by side without slowing each other down.
SETTINGS = "site.threads=1 site.grace_s=5"
TARGET = "export"


def victims(light: Light, controller: subprocess.Popen[str], chance: random.Random) -> None:
    """Kill the controller, its step, or everything at once."""
    what = chance.choice(["controller", "controller", "step", "everything"])
    if what == "everything":
        kill_all(light)
    elif what == "step":
        for process in light.processes():
            if process.pid != controller.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
    else:
        controller.kill()


def test_random_kills_of_the_light_chain(place: Path, documents: Path, whole: dict[str, Any]) -> None:
    chance = random.Random(20261120)
    light = Light(Path(tempfile.mkdtemp(dir=place)), documents)
    reader = Reader(light.runs)
    reader.start()
    kills = 0
    while kills < LIGHT_KILLS:
        controller = light.start()
        # Mostly while the interpreter is past its start and the chain at work.
        time.sleep(chance.uniform(0.15, 0.8))
        if controller.poll() is None:
            kills += 1
            with TALLY.fault("SIGKILL at a random time, light chain"):
                victims(light, controller, chance)
                controller.communicate(timeout=60)
                if chance.random() < 0.5:
                    wait_gone(light)
        else:
            assert controller.returncode == 0, controller.communicate()[0]
        if light.runs.joinpath("light", "export", "latest").exists():
            wait_gone(light)
            light.must_end_as(whole)
            assert not light.quarantined()
            reader.stop()
            assert not reader.faults, reader.faults[:3]
            shutil.rmtree(light.runs)
            light.runs.mkdir()
            reader = Reader(light.runs)
            reader.start()
    light.must_end_as(whole)
    reader.stop()
    assert not reader.faults, reader.faults[:3]


class Real(Light):
    """The miniature recipe, real toolchains and all, as far as export."""

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        command = [str(Toolchain("controller").python), "-m", "pipeline", TARGET, "llama-mini", "--plain"]
        return subprocess.Popen(
            [*command, "--runs", str(self.runs), "--set", SETTINGS, *words],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def __call__(self, *words: str, **environment: str) -> tuple[int, str]:
        process = self.start(*words, **environment)
        output, _ = process.communicate(timeout=900)
        return process.returncode, output

    def published(self) -> dict[str, dict[str, Any]]:
        found = {}
        for link in sorted((self.runs / "llama-mini").glob("*/latest")):
            artifact = read_artifact(link.resolve())
            assert artifact is not None
            found[link.parent.name] = {
                name: artifact.manifest[name] for name in ("identity", "files", "output_digest")
            }
        return found


@pytest.mark.full
def test_random_kills_of_real_training(place: Path, documents: Path) -> None:
    reference = Real(Path(tempfile.mkdtemp(dir=place)), documents)
    status, output = reference()
    assert status == 0, output
    whole = reference.published()
    assert set(whole) == {"curate", "pretrain", "train", "align", "evaluate", "export"}
    workers = max(1, len(os.sched_getaffinity(0)))
    shares = [REAL_KILLS // workers + (place < REAL_KILLS % workers) for place in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        done = list(
            pool.map(
                lambda job: _kill_real(*job), [(place, documents, whole, n, s) for n, s in enumerate(shares)]
            )
        )
    print(f"{sum(kills for kills, _ in done)} kills, {sum(chains for _, chains in done)} whole chains")


def _kill_real(
    place: Path, documents: Path, whole: dict[str, Any], number: int, share: int
) -> tuple[int, int]:
    """``share`` kills; every chain that ends must have published ``whole``."""
    chance = random.Random(number)
    kills = chains = 0
    while kills < share or not chains:
        real = Real(Path(tempfile.mkdtemp(dir=place)), documents)
        reader = Reader(real.runs)
        reader.start()
        ended = False
        while not ended:
            controller = real.start()
            if kills < share:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    controller.wait(chance.uniform(0.3, LONGEST_S))
            if controller.poll() is None and kills < share:
                kills += 1
                with TALLY.fault("SIGKILL at a random time, real training"):
                    victims(real, controller, chance)
                    # A kill between two steps hits none of them: then it goes on to the end.
                    controller.communicate(timeout=900)
            else:
                said, _ = controller.communicate(timeout=900)
                assert controller.returncode == 0, said
                ended = True
        wait_gone(real)
        assert real.published() == whole
        assert not real.quarantined()
        reader.stop()
        assert not reader.faults, reader.faults[:3]
        shutil.rmtree(real.runs)
        chains += 1
    return kills, chains
