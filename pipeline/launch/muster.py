"""Several machines at one training step: how the first calls the others.

A cluster starts the same job on every machine and tells each by three variables: how many there are,
which this is, and a folder on the disk that all see.  On the first one the controller runs, as anywhere; the
others wait in :mod:`pipeline.launch.node`.  A step that trains leaves a *call* in the folder: where to
meet, and what to run.  A machine whose part failed says so there, and the first one stops waiting for it.  When
the controller is done, however it ended, it leaves its exit status, and that *dismisses* them.

Standard library only: controller, waiting machines and the training engine import this.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.stages.step import write_json

NODES, NODE, FOLDER = "LIFECYCLE_NODES", "LIFECYCLE_NODE", "LIFECYCLE_MUSTER"
CALL, FAILED, DISMISSED = "call.json", "failed", "dismissed"


@dataclass(frozen=True)
class Call:
    """A step's call: ``address`` of the first machine's port, ``toolchain`` and ``job`` of the step, the run
    that every process reads, and the processes of one machine."""

    address: str
    toolchain: str
    job: str
    run: str
    processes: int
    nodes: int


def nodes() -> int:
    """Machines that share the steps of this job."""
    return int(os.environ.get(NODES, "1"))


def assigned() -> bool:
    """Whether a cluster has said how many machines there are."""
    return NODES in os.environ


def folder() -> Path | None:
    """Where calls are left; None where there is one machine."""
    given = os.environ.get(FOLDER)
    return Path(given) if given and nodes() > 1 else None


def call(toolchain: str, job: Path, run: Path, processes: int) -> Call:
    """Leave a call for the other machines, at a free port of this one."""
    place = folder()
    assert place is not None, "called on a single machine"
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    made = Call(f"{socket.gethostname()}:{port}", toolchain, str(job), str(run), processes, nodes())
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / CALL, asdict(made))
    return made


def read(place: Path) -> Call | None:
    """The call in a folder, if there is one yet."""
    try:
        return Call(**json.loads((place / CALL).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def failed(place: Path) -> int | None:
    """The status of another machine's part, where one failed."""
    for file in sorted(place.glob(f"{FAILED}.*")):
        return int(file.suffix.removeprefix("."))
    return None


def tell_failed(place: Path, status: int) -> None:
    """Say that this machine's part ended with a status."""
    (place / f"{FAILED}.{status}").touch()


def dismiss(status: int) -> None:
    """Let the other machines go, with the controller's exit status; on a single machine nothing happens."""
    place = folder()
    if place is not None and os.environ.get(NODE, "0") == "0":
        with contextlib.suppress(OSError):  # the cluster ends them then
            place.mkdir(parents=True, exist_ok=True)
            part = place / f".{DISMISSED}"
            part.write_text(f"{status}\n", encoding="utf-8")
            part.rename(place / DISMISSED)
