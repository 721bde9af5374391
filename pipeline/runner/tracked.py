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
from pipeline.toolchains import ROOT, Toolchain

READY_S = 90.0  # to load the packages and to be answered by a server
END_S = 60.0  # to pass on the rest
SUBJECT, LOG = "tracking.json", "tracking.log"


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

    Files of theirs lie in ``folder``.  Raises :class:`UserError` where one of them cannot be had at the
    beginning; what fails later is a warning.
    """
    if not is_on(tracking):
        yield
        return
    work = Path(job["work"])
    process = _start(work, {**job, "tracking": asdict(tracking), "folder": str(folder.resolve())})
    ended = "failed"
    try:
        yield
        ended = "finished"
    except (Interrupted, KeyboardInterrupt):
        ended = "interrupted"
        raise
    finally:
        _end(process, ended, work / LOG, warn)


def _start(work: Path, subject: dict[str, Any]) -> subprocess.Popen[str]:
    toolchain = Toolchain("tracking")
    toolchain.require()
    write_json(work / SUBJECT, subject)
    events = work / "events.jsonl"
    offset = events.stat().st_size if events.exists() else 0
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    with open(work / LOG, "ab") as log:
        # It ends when its input does, so it needs no signal when the controller is killed.
        process = subprocess.Popen(
            [str(toolchain.python), "-m", "pipeline.tracking", str(work / SUBJECT), str(offset)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=work,
            text=True,
            env={**kept, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # Ctrl-C is the step's; this ends after it
        )
    assert process.stdout is not None
    answer = ""
    if select.select([process.stdout], [], [], READY_S)[0]:
        answer = process.stdout.readline().strip()
    if answer == "ready":
        return process
    process.kill()
    process.wait()
    raise UserError(
        f"tracking: {answer or 'no answer'}\nNothing was started. Mend the settings of `tracking` or what they "
        f"need in the environment, or leave them out; the log: {work / LOG}"
    )


def _end(process: subprocess.Popen[str], ended: str, log: Path, warn: Callable[[str], None]) -> None:
    try:
        process.communicate(f"{ended}\n", timeout=END_S)
        if process.returncode == 0:
            return
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        reason = lines[-1] if lines else f"status {process.returncode}"
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        reason = f"it took more than {END_S:.0f} s"
    except OSError as error:
        reason = str(error)
    warn(f"a tracker was not told everything: {reason}")
