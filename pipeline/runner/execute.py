"""Run one step as its own process in its toolchain, watch it, and bring back what it said."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, StepFailed, UserError
from pipeline.runner.display import Display
from pipeline.runner.events import EventReader
from pipeline.stages.step import write_json
from pipeline.toolchains import ROOT, Toolchain

GRACE_S = 20.0  # how long an interrupted step may take to end by itself
POLL_S = 0.1
DISK_FULL = 28  # see pipeline.stages.__main__
ALMOST_NOTHING = 1_000_000  # bytes


@dataclass
class Outcome:
    """What a finished step left: its figures, how long it took and its largest process."""

    metrics: dict[str, Any]
    headline: str
    seconds: float
    peak_memory_gb: float
    warnings: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def execute(job: dict[str, Any], toolchain: Toolchain, display: Display, lease: int) -> Outcome:
    """Run the step that ``job`` describes and return its outcome.

    ``lease`` is the descriptor of the stage's lock: the step inherits it, so that the lock
    holds for as long as either lives.  What an earlier attempt left in ``output/`` is
    dropped: only ``state/`` is made to be gone on from.

    Raises :class:`UserError` for exit status 2 (the user's mistake, in the step's own
    words), :class:`StepFailed` for any other failure, :class:`Interrupted` on a signal.
    The step dies with the controller: its group is signalled on every way out, and the
    kernel signals it if the controller is killed.  A server that a step leaves running has
    a session of its own and is not touched.
    """
    work = Path(job["work"])
    work.mkdir(parents=True, exist_ok=True)
    write_json(work / "job.json", job)
    (work / "result.json").unlink(missing_ok=True)
    shutil.rmtree(work / "output", ignore_errors=True)
    events_path = work / "events.jsonl"
    _end_torn_line(events_path)
    reader = EventReader(events_path, events_path.stat().st_size if events_path.exists() else 0)
    outcome = Outcome({}, "", 0.0, 0.0)
    errors: list[str] = []
    started = time.monotonic()
    with open(work / "log.txt", "ab") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} attempt of {job['stage']}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [str(toolchain.python), "-m", "pipeline.stages", str(work / "job.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=work,
            env=step_environment(toolchain, job["threads"]),
            start_new_session=True,
            pass_fds=(lease,),
            preexec_fn=_die_with_parent,
        )
        try:
            status, usage = _watch(process, reader, display, outcome, errors)
        except BaseException as stop:
            _end_group(process)
            if isinstance(stop, KeyboardInterrupt):
                number = getattr(stop, "signal_number", signal.SIGINT)
                raise Interrupted(
                    f"{job['stage']} was interrupted; the same command goes on from where it was", number
                ) from None
            raise
    outcome.seconds = time.monotonic() - started
    outcome.peak_memory_gb = usage.ru_maxrss * 1024 / 1e9
    _end_group(process)  # helpers that outlived the step
    if status == 2:
        raise UserError("\n".join(errors) or f"{job['stage']} refused its input; see {work / 'log.txt'}")
    if status == DISK_FULL:
        raise UserError(
            f"{job['stage']}: the disk of {work} is full; free some space and run the same command again"
        )
    if status != 0:
        raise StepFailed(_failure(job["stage"], status, work, errors))
    try:
        result = json.loads((work / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise StepFailed(_failure(job["stage"], status, work, ["it ended without a result"])) from None
    outcome.metrics, outcome.headline = result["metrics"], result["headline"]
    return outcome


def step_environment(toolchain: Toolchain, threads: int) -> dict[str, str]:
    """The environment of a step: the caller's, less other Pythons, plus a fixed hash seed.

    Hub access is off: a step reads what its job names and nothing from the network.
    """
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "OMP_", "MKL_"))
    }
    return {
        **keep,
        "PATH": f"{toolchain.folder / 'bin'}:{keep.get('PATH', '/usr/bin:/bin')}",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _watch(
    process: subprocess.Popen[bytes],
    reader: EventReader,
    display: Display,
    outcome: Outcome,
    errors: list[str],
) -> tuple[int, Any]:
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        for event in reader.new_events():
            display.event(event)
            if event["kind"] == "error":
                errors.append(str(event["text"]))
            elif event["kind"] in ("warning", "message"):
                getattr(outcome, f"{event['kind']}s").append(str(event["text"]))
        if pid:
            code = os.waitstatus_to_exitcode(status)
            process.returncode = code  # reaped here, so that its resource usage could be read
            return code, usage
        display.tick()
        time.sleep(POLL_S)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the step's process group: politely, and after a grace period by force."""
    try:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
    except ProcessLookupError:
        pass  # it ended between the look and the signal
    finally:  # also when a second Ctrl-C cuts the grace period short
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.poll()


def _die_with_parent() -> None:
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def _end_torn_line(path: Path) -> None:
    """Close a line that a killed attempt left half written, so that the next one starts clean."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as handle:
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                handle.write(b"\n")


def _failure(stage: str, status: int, work: Path, errors: list[str]) -> str:
    log = work / "log.txt"
    how = f"was ended by signal {signal.Signals(-status).name}" if status < 0 else f"failed (status {status})"
    if status == -signal.SIGKILL:
        how += ", as the system does when memory runs out"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:]
    lines = [f"{stage} {how}.", *errors, *(f"  | {line}" for line in tail), f"Its whole log: {log}"]
    lines.append("The same command tries again and goes on from its last checkpoint.")
    if free_bytes(work) < ALMOST_NOTHING:
        lines.insert(1, f"The disk of {work} is full: free some space first.")
    return "\n".join(lines)


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written to the disk of a folder."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize
