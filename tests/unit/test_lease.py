"""The lease: one holder, takeover of the dead and the silent, fencing of the late."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.runner import lease as leases
from pipeline.runner.lease import Held, acquire, attempt, attempts, epoch_of, holder_of, live_holder
from pipeline.serving import processes
from pipeline.toolchains import ROOT

KEY = "0123456789ab"
HOLD = """
import sys, time
from pathlib import Path
from pipeline.runner.lease import acquire
held = acquire(Path(sys.argv[1]), sys.argv[2], "small/train", lease_s=float(sys.argv[3]), tell=print)
(held.folder / "state").mkdir(exist_ok=True)
(held.folder / "state" / "work").write_text("work")
print("held", held.folder.name, flush=True)
sys.stdin.read()
(held.folder / "output").mkdir()
"""


def take(stage: Path, lease_s: float = 30, wait: bool = False) -> leases.Lease:
    return acquire(stage, KEY, "small/train", lease_s=lease_s, wait=wait, tell=lambda _: None)


def stop(process: subprocess.Popen[str]) -> None:
    """Pause a process, and see that it is paused."""
    process.send_signal(signal.SIGSTOP)
    while processes.find(process.pid).state != "T":  # type: ignore[union-attr]
        time.sleep(0.01)


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path), KEY, "0.6"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"held {KEY}.1\n"
    yield process
    process.kill()
    process.communicate()


def test_a_live_holder_is_named_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    began = time.monotonic()
    with pytest.raises(Held, match=f"being run by process {holder.pid} on"):
        take(tmp_path)
    assert time.monotonic() - began < 10  # and not the 60 s of a lease, however busy the machine is
    assert live_holder(tmp_path / ".work" / f"{KEY}.1") is not None


def test_a_dead_holders_work_comes_with_the_lease_at_once(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    held = take(tmp_path)
    assert held.folder.name == f"{KEY}.2"
    assert (held.folder / "state" / "work").read_text() == "work"
    assert [path.name for path in attempts(tmp_path)] == [f"{KEY}.2"]
    held.close()
    assert holder_of(held.folder) is None


def test_a_step_that_outlives_its_controller_keeps_the_lease(tmp_path: Path) -> None:
    held = take(tmp_path)
    step = subprocess.Popen(["sleep", "1.5"], pass_fds=(held.descriptor,))
    folder = held.folder
    held._stop.set()
    os.close(held.descriptor)  # as the kernel does when the controller is killed
    assert live_holder(folder) is not None
    began = time.monotonic()
    # This process lives on, so it would be named as the holder: let it look like another's.
    record = json.loads((folder / "holder.json").read_text())
    with open(folder / "holder.json", "r+") as handle:
        json.dump({**record, "pid": 2**22 - 1}, handle)
        handle.truncate()
    again = take(tmp_path)
    assert time.monotonic() - began > 0.5
    step.wait()
    again.close()


def test_a_stopped_holder_is_taken_over_and_can_write_nothing_when_it_wakes(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    stop(holder)
    began = time.monotonic()
    held = take(tmp_path, lease_s=0.6)
    assert 0.5 < time.monotonic() - began < 5
    assert held.folder.name == f"{KEY}.2"
    holder.send_signal(signal.SIGCONT)
    _, error = holder.communicate("go on", timeout=20)
    assert "FileNotFoundError" in error
    assert not (held.folder / "output").exists()
    assert held.held()
    held.close()


def test_a_holder_elsewhere_lives_while_its_heart_beats(tmp_path: Path) -> None:
    held = take(tmp_path, lease_s=0.6)
    record = json.loads((held.folder / "holder.json").read_text())
    with open(held.folder / "holder.json", "r+") as handle:  # the same file: another machine's holder
        json.dump({**record, "boot": "another", "host": "elsewhere"}, handle)
        handle.truncate()
    with pytest.raises(Held, match="on elsewhere"):
        take(tmp_path, lease_s=5)
    held._stop.set()
    held._beat.join()
    again = take(tmp_path, lease_s=0.6)
    assert again.epoch == held.epoch + 1
    assert not held.held()
    again.close()


def test_a_clock_that_jumps_neither_kills_nor_saves_a_holder(
    tmp_path: Path, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 4e9)
    with pytest.raises(Held):
        take(tmp_path, lease_s=0.6)
    os.utime(tmp_path / ".work" / f"{KEY}.1" / "holder.json", (4e9, 4e9))  # beats from the future
    assert leases.silence_s(tmp_path / ".work" / f"{KEY}.1") == 0.0
    stop(holder)
    take(tmp_path, lease_s=0.6).close()


def test_an_epoch_never_comes_again(tmp_path: Path) -> None:
    seen = []
    for _ in range(3):
        held = take(tmp_path)
        seen.append(held.epoch)
        held.close()
        for path in sorted(held.folder.iterdir()):
            path.unlink()
        held.folder.rmdir()
    assert seen == [1, 2, 3]


def test_different_steps_of_a_stage_do_not_wait_for_each_other(tmp_path: Path) -> None:
    held = take(tmp_path)
    other = acquire(tmp_path, "f" * 12, "small/train", lease_s=30, tell=print)
    assert {path.name.partition(".")[0] for path in attempts(tmp_path)} == {KEY, "f" * 12}
    assert attempt(tmp_path, KEY) == held.folder
    assert epoch_of(other.folder) > held.epoch
    held.close()
    other.close()


def test_waiting_ends_when_the_holder_does(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {holder.pid}"])
    held = take(tmp_path, wait=True)
    assert held.folder.name == f"{KEY}.2"
    held.close()


def test_of_eight_that_race_one_holds(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), KEY, "30"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    time.sleep(0.1)
    deadline = time.monotonic() + 60
    while sum(racer.poll() is None for racer in racers) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = [racer for racer in racers if racer.poll() is None]
    assert len(alive) == 1
    assert len(attempts(tmp_path)) == 1
    assert sum("is being run by" in racer.communicate()[1] for racer in racers if racer not in alive) == 7
    alive[0].kill()
    alive[0].communicate()


def test_claims_of_the_dead_are_swept(tmp_path: Path) -> None:
    work = tmp_path / ".work"
    (work / ".claim-dead").mkdir(parents=True)
    descriptor, _ = leases._write_holder(work / ".claim-dead" / "holder.json")
    os.close(descriptor)
    take(tmp_path).close()
    assert not list(work.glob(".claim-*"))
