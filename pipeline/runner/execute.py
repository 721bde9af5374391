"""Run one step as its own process in its toolchain, watch it, and bring back what it said."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.errors import Interrupted, StepFailed, UserError
from pipeline.runner.attempt import end_torn_line
from pipeline.runner.display import Display
from pipeline.runner.events import EventReader
from pipeline.runner.lease import Lease, LeaseLost
from pipeline.runner.reasons import disk_full, failure, oom_kills
from pipeline.stages.ending import DISK_FULL
from pipeline.stages.step import write_json
from pipeline.surroundings import settled
from pipeline.threads import thread_environment
from pipeline.toolchains import ROOT, Toolchain

POLL_S = 0.05
PR_SET_PDEATHSIG = 1  # prctl(2)
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # loaded before any fork


@dataclass
class Outcome:
    """What a finished step left: its figures, how long it took and its largest process."""

    metrics: dict[str, Any]
    headline: str
    seconds: float
    peak_memory_gb: float
    warnings: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


def execute(
    job: dict[str, Any], toolchain: Toolchain, display: Display, held: Lease, grace_s: float
) -> Outcome:
    """Run the step that ``job`` describes in the lease's folder and return its outcome.

    The step inherits the lease's lock, so that it holds for as long as either lives.  What
    an earlier attempt left in ``output/`` is dropped: only ``state/`` is made to be gone
    on from.  ``grace_s``: how long an interrupted step may take to write a checkpoint.

    Raises :class:`UserError` for exit status 2 (the user's mistake, in the step's own
    words), :class:`StepFailed` for any other failure, :class:`Interrupted` on a signal,
    :class:`LeaseLost` when another controller took the step over.
    The step dies with the controller: its group is signalled on every way out, and the
    kernel signals it if the controller is killed.  A server that a step leaves running has
    a session of its own and is not touched.
    """
    work = held.folder.resolve()  # the step runs in it, so a relative path would lead nowhere
    write_json(work / "job.json", job)
    (work / "result.json").unlink(missing_ok=True)
    if (work / "output").exists():
        shutil.rmtree(work / "output")
    events_path = work / "events.jsonl"
    end_torn_line(events_path)
    reader = EventReader(events_path, events_path.stat().st_size if events_path.exists() else 0)
    outcome = Outcome({}, "", 0.0, 0.0)
    errors: list[str] = []
    started, kills_before = time.monotonic(), oom_kills()
    with open(work / "log.txt", "ab") as log:
        log.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} attempt of {job['stage']}\n".encode())
        log.flush()
        process = subprocess.Popen(
            [str(toolchain.python), "-m", "pipeline.stages", str(work / "job.json")],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=work,
            env=step_environment(toolchain, job["threads"], work),
            start_new_session=True,
            pass_fds=(held.descriptor,),
            preexec_fn=partial(die_with, os.getpid()),
        )
        try:
            status, usage = _watch(process, reader, display, outcome, errors, held)
        except BaseException as stop:
            _end_group(process, 0.0 if isinstance(stop, LeaseLost) else grace_s, display)
            if isinstance(stop, KeyboardInterrupt):
                number = getattr(stop, "signal_number", signal.SIGINT)
                raise Interrupted(
                    f"{job['stage']} was interrupted; the same command goes on from where it was", number
                ) from None
            raise
    outcome.seconds = time.monotonic() - started
    outcome.peak_memory_gb = usage.ru_maxrss * 1024 / 1e9
    _end_group(process, 0.0, display)  # helpers that outlived the step
    held.require()
    if status == 2:
        raise UserError("\n".join(errors) or f"{job['stage']} refused its input; see {work / 'log.txt'}")
    peak = outcome.peak_memory_gb
    if status == DISK_FULL:
        full = disk_full(work) or f"a disk is full, or a quota used up, as the end of {work / 'log.txt'} says"
        raise UserError(f"{job['stage']}: {full}; free some space and run the same command again")
    if status != 0:
        raise StepFailed(failure(job["stage"], status, work, errors, kills_before, peak))
    try:
        result = strict_json.loads((work / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        ended = ["it ended without a result"]
        raise StepFailed(failure(job["stage"], status, work, ended, kills_before, peak)) from None
    outcome.metrics, outcome.headline = result["metrics"], result["headline"]
    return outcome


def step_environment(toolchain: Toolchain, threads: int, work: Path | None = None) -> dict[str, str]:
    """The environment of a step: the caller's, less other Pythons, plus a fixed hash seed.

    Hub access is off: a step reads what its job names and nothing from the network.  What the machine lacks is made
    good below the step's folder ``work`` (:mod:`pipeline.surroundings`).
    """
    keep = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "OMP_", "MKL_"))
    }
    return {
        **(keep if work is None else settled(keep, work)),
        "PATH": f"{toolchain.folder / 'bin'}:{keep.get('PATH', '/usr/bin:/bin')}",
        "PYTHONPATH": str(ROOT),
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        **thread_environment(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        # mimalloc (in Arrow and in rensa) takes what memory a limit leaves, a gigabyte at best, in
        # advance: nothing is left for the other allocators then, and libraries that expect some crash.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "MIMALLOC_ARENA_RESERVE": "16384",  # KiB
    }


def _watch(
    process: subprocess.Popen[bytes],
    reader: EventReader,
    display: Display,
    outcome: Outcome,
    errors: list[str],
    held: Lease,
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
        held.require()
        display.tick()
        time.sleep(POLL_S)


def _end_group(process: subprocess.Popen[bytes], grace_s: float, display: Display) -> None:
    """End the step's process group: politely, and after a grace period by force.

    A second Ctrl-C cuts the grace period short.
    """
    try:
        if process.returncode is None and grace_s:
            os.killpg(process.pid, signal.SIGTERM)
            display.line("", "stopping; once more to stop at once")
            deadline = time.monotonic() + grace_s
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(POLL_S)
    except (ProcessLookupError, KeyboardInterrupt):
        pass  # it ended between the look and the signal, or there is no time
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def die_with(parent: int) -> None:
    """In the child: have the kernel end it when the controller is gone, even by kill -9."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)
