"""Have trackers told of a step while it runs, by a process beside it (:mod:`pipeline.tracking`)."""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.errors import Interrupted, UserError
from pipeline.schema import Tracking
from pipeline.stages.step import write_json
from pipeline.surroundings import settled
from pipeline.toolchains import ROOT, Toolchain

READY_S = 90.0  # to load the packages and to be answered by a server
END_S = {"finished": 60.0, "failed": 60.0, "interrupted": 5.0}  # to pass on the rest; a stop is in a hurry
STARTING, SUBJECT, LOG = "tracking.json.part", "tracking.json", "tracking.log"


def is_on(tracking: Tracking) -> bool:
    """Whether anybody is told."""
    return bool(tracking.tensorboard or tracking.wandb or tracking.mlflow)


def require(tracking: Tracking) -> None:
    """Raise :class:`UserError` where trackers are asked for and their toolchain is not there."""
    if is_on(tracking):
        Toolchain("tracking").require()


@contextlib.contextmanager
def tracked(
    job: dict[str, Any], tracking: Tracking, folder: Path, warn: Callable[[str], None]
) -> Iterator[None]:
    """Tell the trackers that are asked for, if any, of the step that ``job`` describes.

    Files of theirs lie in ``folder``.  Raises :class:`UserError` where one of them cannot be had before the step's first
    attempt; what fails later is a warning, so that no training is lost to it.
    """
    if not is_on(tracking):
        yield
        return
    work = Path(job["work"])
    goes_on = (work / SUBJECT).exists()
    process, fault = _start(work, {**job, "tracking": asdict(tracking), "folder": str(folder.resolve())})
    if process is None:
        if not goes_on:
            raise UserError(
                f"tracking: {fault}\nNothing was started. Mend the settings of `tracking` or what they need in the "
                f"environment, or leave them out; the log: {work / LOG}"
            )
        warn(f"goes on without trackers: {fault}")
        yield
        return
    ended = "failed"
    try:
        yield
        ended = "finished"
    except (Interrupted, KeyboardInterrupt):
        ended = "interrupted"
        raise
    finally:
        _end(process, ended, work / LOG, warn)


def _start(work: Path, subject: dict[str, Any]) -> tuple[subprocess.Popen[str] | None, str]:
    """The process beside the step once it is ready; None, and why, where a tracker cannot be had."""
    toolchain = Toolchain("tracking")
    toolchain.require()
    events = work / "events.jsonl"
    offset = events.stat().st_size if events.exists() else 0
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    write_json(work / STARTING, subject)
    with open(work / LOG, "ab") as log:
        # It ends when its input does, so it needs no signal when the controller is killed.
        process = subprocess.Popen(
            [str(toolchain.python), "-m", "pipeline.tracking", str(work / STARTING), str(offset)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=work,
            text=True,
            env={**settled(kept, work), "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # Ctrl-C is the step's; this ends after it
        )
    try:
        assert process.stdout is not None
        answer = ""
        if select.select([process.stdout], [], [], READY_S)[0]:
            answer = process.stdout.readline().strip()
        if answer == "ready":
            os.replace(work / STARTING, work / SUBJECT)
            return process, ""
    except BaseException:
        _kill(process)
        raise
    _kill(process)
    return None, answer or "no answer"


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def _end(process: subprocess.Popen[str], ended: str, log: Path, warn: Callable[[str], None]) -> None:
    try:
        process.communicate(f"{ended}\n", timeout=END_S[ended])
        if process.returncode == 0:
            return
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"status {process.returncode}"
    except subprocess.TimeoutExpired:
        _kill(process)
        reason = f"it took more than {END_S[ended]:.0f} s"
    except OSError as error:
        reason = str(error)
    warn(f"a tracker was not told everything: {reason}")
