"""One Triton that was started: alive, healthy, stopped.

Everybody finds a server through its record (part of :mod:`pipeline.serving.service`) and never by name or port, so
that nothing but this server is ever probed or stopped.  A process is recognised by its id, its start time and the boot of
the machine; an id alone may since belong to somebody else.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from pipeline import places
from pipeline.gateway.addresses import authority, is_everywhere
from pipeline.serving import processes
from pipeline.serving.client import ServingError, events
from pipeline.wording import counted

TERM_WAIT_S = 10.0
KILL_WAIT_S = 5.0
STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class ServerRecord:
    """A server that was started.

    ``start_time`` (clock ticks since boot) and ``boot`` tell it from a later process of
    the same ``pid``; ``shm_prefix`` begins the names of its shared-memory regions.
    """

    pid: int
    start_time: int
    boot: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    model_name: str
    export_identity: str
    repository: str
    log: str
    shm_prefix: str

    @property
    def address(self) -> str:
        """Host and port of the HTTP endpoint."""
        return authority(reachable(self.host), self.http_port)


@dataclass(frozen=True)
class Probe:
    """The outcome of asking a server for a short answer; ``seconds`` until it was complete."""

    ok: bool
    reason: str = ""
    seconds: float = 0.0


def reachable(host: str) -> str:
    """The address to reach a server on that listens on ``host`` (all addresses: loopback)."""
    if not is_everywhere(host):
        return host
    return "::1" if ":" in host else "127.0.0.1"


def is_running(record: ServerRecord) -> bool:
    """Whether the very process of the record is alive (a zombie is not) and is tritonserver."""
    process = processes.find(record.pid)
    return (
        process is not None
        and process.state != "Z"
        and process.start_time == record.start_time
        and processes.boot_id() == record.boot
        and Path(process.command[0]).name == "tritonserver"
    )


def probe(record: ServerRecord, timeout: float) -> Probe:
    """Ask for one streamed answer of a few tokens; ``timeout`` seconds per wait."""
    started = time.monotonic()
    try:
        answer = list(
            events(
                record.address,
                record.model_name,
                text="ready?",
                max_tokens=2,
                temperature=0.0,
                ignore_end=True,
                timeout=timeout,
            )
        )
    except ServingError as error:
        return Probe(False, str(error), time.monotonic() - started)
    if not answer[-1]["completion_tokens"]:
        return Probe(False, "the answer holds no token", time.monotonic() - started)
    return Probe(True, "", time.monotonic() - started)


def stop(record: ServerRecord, what: str = "the Triton behind it") -> str:
    """Stop exactly this server and the processes of its models; returns what happened to ``what``.

    Its address is not among the words: a person deployed the gateway's, and never saw this one.
    Asks first (SIGTERM) and forces (SIGKILL) what is still there after ``TERM_WAIT_S``.
    Raises ``RuntimeError`` when a process survives even that.
    """
    was_running = is_running(record)
    members = _members(record)
    # A live server ends its model processes itself, after the answers under way.
    _signal([m for m in members if m.pid == record.pid] if was_running else members, signal.SIGTERM)
    forced = not _wait_gone(record, TERM_WAIT_S)
    if forced:
        _signal(_members(record), signal.SIGKILL)
        if not _wait_gone(record, KILL_WAIT_S):
            left = ", ".join(str(member.pid) for member in _members(record))
            raise RuntimeError(f"process {left} of the server at {record.address} cannot be stopped")
    for region in Path("/dev/shm").glob(f"{record.shm_prefix}*"):
        region.unlink(missing_ok=True)
    places.forget(Path(record.log).resolve().parent)
    if was_running:
        return f"stopped {what} (process {record.pid}{', by force' if forced else ''})"
    if members:
        left = counted(len(members), "process", "processes")
        return f"{what} was gone; stopped what it had left ({left})"
    return f"{what} (process {record.pid}) was already gone"


def stop_strays(folder: Path, known: ServerRecord | None) -> str:
    """Stop servers that were started in ``folder`` and that no record speaks of; returns their ids.

    A start that is killed between the server's first breath and its record leaves one.  It
    is recognised by the folder that it works in: one of this recipe alone.
    """
    stray = {
        process.pid: place
        for process in processes.everything()
        if Path(process.command[0]).name == "tritonserver"
        and (known is None or process.pid != known.pid)
        and (place := processes.folder(process.pid)) is not None
        and place.parent == folder.resolve()
    }
    for pid in stray:
        # It may not have set up its own handling of SIGTERM yet, nor answered anybody.
        _signal(processes.of_session(pid), signal.SIGKILL)
    deadline = time.monotonic() + KILL_WAIT_S
    while any(processes.of_session(pid) for pid in stray) and time.monotonic() < deadline:
        time.sleep(0.05)
    for place in stray.values():
        places.forget(place)
    return ", ".join(map(str, stray))


def peak_memory_gb(record: ServerRecord) -> float:
    """Memory of the server's largest process at its peak, in GB."""
    peaks = [0]
    for member in _members(record):
        try:
            status = Path(f"/proc/{member.pid}/status").read_text(encoding="utf-8")
        except OSError:
            continue  # it ended meanwhile
        peaks += [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
    return round(max(peaks) * 1024 / 1e9, 2)


def _members(record: ServerRecord) -> list[processes.Process]:
    """The server and its children.  It leads its own session, which they never leave.

    Once the server itself is gone its id may lead somebody else's session: then only
    Triton's model processes that carry this server's shared-memory prefix count.
    """
    if processes.boot_id() != record.boot:
        return []
    session = processes.of_session(record.pid)
    if is_running(record):
        return session
    return [
        process
        for process in session
        if STUB in process.command[0] and any(record.shm_prefix in word for word in process.command)
    ]


def _signal(members: list[processes.Process], number: signal.Signals) -> None:
    for member in members:
        try:
            os.kill(member.pid, number)
        except ProcessLookupError:
            continue


def _wait_gone(record: ServerRecord, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _members(record):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
