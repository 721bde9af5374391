"""Several controllers at once: racing, paused and woken late, with clocks that jump."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pipeline.serving import processes
from tests.faults.conftest import FULL
from tests.faults.harness import (
    TALLY,
    TRACEBACK,
    Light,
    Reader,
    kill_all,
    operations,
    wait_for_seal,
    wait_gone,
)

ROUNDS = 20 if FULL else 2
PAUSE_EVERY = 1 if FULL else 8


def attempts(light: Light) -> dict[str, int]:
    """Stage to the number of attempts that its published artifact took."""
    return {
        path.parent.name: len(json.loads((path / "manifest.json").read_text())["attempts"])
        for path in (light.runs / "light").glob("*/latest")
    }


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("words", [(), ("--wait",)], ids=["refusing", "waiting"])
def test_controllers_that_race_run_every_step_once(
    count: int, words: tuple[str, ...], place: Path, documents: Path, whole: dict[str, Any]
) -> None:
    for _ in range(ROUNDS):
        light = Light(Path(tempfile.mkdtemp(dir=place)), documents)
        reader = Reader(light.runs)
        with TALLY.fault(f"race of {count} controllers from the same start"):
            reader.start()
            racers = [light.start(*words) for _ in range(count)]
            said = [racer.communicate(timeout=60)[0] for racer in racers]
            reader.stop()
            statuses = [racer.returncode for racer in racers]
            assert all(TRACEBACK not in text for text in said), said
            if words:
                assert statuses == [0] * count, said
            else:
                assert statuses.count(0) >= 1, said
                assert set(statuses) <= {0, 1}, said
                for status, text in zip(statuses, said, strict=True):
                    assert status == 0 or "is being run by process" in text, text
            assert light.published() == whole
            assert attempts(light) == {"curate": 1, "train": 1, "export": 1}
            assert not light.quarantined()
            assert not reader.faults
        shutil.rmtree(light.runs)


def test_a_controller_that_is_paused_anywhere_does_no_harm_when_it_wakes(
    place: Path, documents: Path, whole: dict[str, Any], shim: Path
) -> None:
    scratch = Light(Path(tempfile.mkdtemp(dir=place)), documents)
    every = operations(scratch, shim, place / "operations-pause")
    chosen = [at for at, _ in every if at.startswith("controller:")][::PAUSE_EVERY]
    failures = []

    def trial(at: str) -> None:
        light = Light(Path(tempfile.mkdtemp(dir=place)), documents)
        try:
            one_pause(light, at, whole, shim)
        except AssertionError as error:
            failures.append(f"paused at {at} ({dict(every)[at]}): {error}")
        finally:
            shutil.rmtree(light.runs, ignore_errors=True)

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(trial, chosen))
    print(f"{len(chosen)} pauses")
    assert not failures, "\n\n".join(failures[:5]) + f"\n\n{len(failures)} of {len(chosen)} failed"


def one_pause(light: Light, at: str, whole: dict[str, Any], shim: Path) -> None:
    """One controller stops before an operation; another takes over; the first wakes."""
    fired = light.runs.with_suffix(".fired")
    reader = Reader(light.runs)
    with TALLY.fault("controller paused (SIGSTOP), taken over, woken late"):
        reader.start()
        try:
            paused = light.start(
                LD_PRELOAD=str(shim),
                FAULT_ROOT=str(light.runs),
                FAULT_AT=at,
                FAULT_KIND="stop",
                FAULT_FIRED=str(fired),
            )
            wait_stopped(paused)
            assert fired.exists()
            fired.unlink()
            status, output = light("--lease=0.4")
            assert status == 0, output
            assert light.published() == whole
            paused.send_signal(signal.SIGCONT)
            said, _ = paused.communicate(timeout=60)
            assert paused.returncode in (0, 1), said
            assert TRACEBACK not in said, said
            if paused.returncode:
                assert "took" in said or "is being run by" in said, said
            assert light.published() == whole
            wait_gone(light)
            light.must_end_as(whole)
            assert not light.quarantined()
        finally:
            reader.stop()
        assert not reader.faults, reader.faults[:3]


def wait_stopped(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen = processes.find(process.pid)
        if seen is not None and seen.state == "T":
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.005)
    raise AssertionError("the process never stopped")


def machine(place: Path, shim: Path, number: int) -> dict[str, str]:
    """The environment of a process on a machine of its own; only the disk is shared."""
    boot = place / f"machine-{number}"
    boot.write_text(f"0000-{number}\n")
    return {"LD_PRELOAD": str(shim), "FAULT_MACHINE": str(boot)}


@pytest.mark.parametrize("count", [2, 4])
def test_machines_that_share_a_disk_and_race_run_every_step_once(
    count: int, place: Path, documents: Path, whole: dict[str, Any], shim: Path
) -> None:
    for _ in range(ROUNDS):
        light = Light(Path(tempfile.mkdtemp(dir=place)), documents)
        reader = Reader(light.runs)
        with TALLY.fault(f"race of {count} machines that share a disk"):
            reader.start()
            racers = [
                light.start("--wait", "--lease=3", **machine(place, shim, number)) for number in range(count)
            ]
            said = [racer.communicate(timeout=120)[0] for racer in racers]
            reader.stop()
            assert [racer.returncode for racer in racers] == [0] * count, said
            assert light.published() == whole
            assert attempts(light) == {"curate": 1, "train": 1, "export": 1}
            assert not light.quarantined()
            assert not reader.faults
        shutil.rmtree(light.runs)


def test_a_machine_that_dies_is_taken_over_by_another(
    light: Light, place: Path, whole: dict[str, Any], shim: Path
) -> None:
    with TALLY.fault("machine that dies, taken over by another"):
        first = light.start("--lease=0.6", LIGHT_PACE_S="0.05", **machine(place, shim, 1))
        wait_for_seal(light, first, "step_008")
        second = light.start("--lease=0.6", **machine(place, shim, 2))
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 1, said  # its heart beats
        assert f"is being run by process {first.pid}" in said
        kill_all(light)
        first.communicate()
        status, output = light("--lease=0.6", **machine(place, shim, 2))
        assert status == 0, output
        assert "waiting up to 0.6 s for a sign of life" in output
        assert "went on from step" in output
        light.must_end_as(whole)


def test_a_machine_that_hangs_and_comes_back_is_fenced_off(
    light: Light, place: Path, whole: dict[str, Any], shim: Path
) -> None:
    with TALLY.fault("machine that hangs, taken over, comes back"):
        first = light.start("--lease=0.6", LIGHT_PACE_S="0.05", **machine(place, shim, 1))
        wait_for_seal(light, first, "step_008")
        hung = light.processes()
        assert len(hung) == 2  # the controller and its step
        for process in hung:
            os.kill(process.pid, signal.SIGSTOP)
        status, output = light("--lease=0.6", **machine(place, shim, 2))
        assert status == 0, output
        assert light.published() == whole
        for process in hung:
            with contextlib.suppress(ProcessLookupError):  # the controller ends its step at once
                os.kill(process.pid, signal.SIGCONT)
        said, _ = first.communicate(timeout=60)
        assert first.returncode == 1, said
        assert "another controller took train over" in said
        wait_gone(light)
        light.must_end_as(whole)
        assert not light.quarantined()


@pytest.mark.parametrize("seconds", [90_000, -90_000, 2_000_000_000])
def test_a_clock_that_jumps_changes_nothing(
    seconds: int, light: Light, whole: dict[str, Any], shim: Path
) -> None:
    with TALLY.fault("wall clock that jumps back and forth"):
        jumping = {"LD_PRELOAD": str(shim), "FAULT_ROOT": str(light.runs), "FAULT_CLOCK": str(seconds)}
        status, output = light(**jumping, FAULT_AT="train:60", FAULT_KIND="kill")
        assert status == 1, output
        status, output = light(**jumping)
        assert status == 0, output
        assert "went on from step" in output
        light.must_end_as(whole)


def test_a_stale_lease_of_another_machine_is_taken_over(
    light: Light, whole: dict[str, Any], shim: Path
) -> None:
    with TALLY.fault("stale lease of a machine that is gone"):
        faults = {"LD_PRELOAD": str(shim), "FAULT_ROOT": str(light.runs)}
        status, output = light(**faults, FAULT_AT="train:60", FAULT_KIND="kill")
        assert status == 1, output
        work = next((light.runs / "light" / "train" / ".work").glob("*.*/job.json")).parent
        holder = {"pid": 1, "start_time": 0, "host": "elsewhere", "boot": "b", "since": "then", "nonce": "n"}
        (work / "holder.json").write_text(json.dumps(holder))
        status, output = light("--lease=0.4")
        assert status == 0, output
        assert "elsewhere" in output
        assert "went on from step" in output
        light.must_end_as(whole)
