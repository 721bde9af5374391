"""What Linux's ``/proc`` says about processes and ports (proc(5))."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp


@dataclass(frozen=True)
class Process:
    """One process: ``start_time`` in clock ticks since boot, which with the pid is unique."""

    pid: int
    state: str
    session: int
    start_time: int
    command: tuple[str, ...]


@dataclass(frozen=True)
class Mark:
    """What tells one process from every other, before and after it and on other boots of the machine."""

    pid: int
    start_time: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> Mark:
        """Of a process that is there (a zombie of our own at worst)."""
        found = find(pid)
        assert found is not None
        return cls(pid, found.start_time, boot_id())

    def process(self) -> Process | None:
        """The process, while it lives (a zombie does not)."""
        found = find(self.pid)
        same = found is not None and found.start_time == self.start_time and boot_id() == self.boot
        return found if same and found is not None and found.state != "Z" else None


def find(pid: int) -> Process | None:
    """The process of this id, None where there is none (or it has just ended)."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        command = (PROC / str(pid) / "cmdline").read_bytes().decode("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field, the name, is in parentheses and may itself hold spaces and ")".
    fields = stat.rpartition(")")[2].split()
    return Process(pid, fields[0], int(fields[3]), int(fields[19]), tuple(command.rstrip("\0").split("\0")))


def folder(pid: int) -> Path | None:
    """The folder that a process works in, where ``/proc`` lets us see it."""
    try:
        return (PROC / str(pid) / "cwd").readlink()
    except OSError:
        return None


def everything() -> list[Process]:
    """All living processes that can be seen, zombies left out."""
    pids = [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()]
    found = [process for pid in pids if (process := find(pid)) is not None]
    return [process for process in found if process.state != "Z"]


def of_session(session: int) -> list[Process]:
    """All living processes of a session (setsid(2)), zombies left out."""
    return [process for process in everything() if process.session == session]


def boot_id() -> str:
    """Differs after every boot of the machine; process ids and start times may not."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def listener(port: int) -> Process | None:
    """The process that listens on a TCP port, where ``/proc`` lets us see it."""
    inodes = set()
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # no IPv6 here
        for fields in map(str.split, lines):
            if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return None
    for entry in PROC.iterdir():
        if entry.name.isdigit() and _holds(entry, inodes):
            return find(int(entry.name))
    return None


def _holds(process: Path, inodes: set[str]) -> bool:
    try:
        return any(str(handle.readlink()) in inodes for handle in (process / "fd").iterdir())
    except OSError:
        return False  # another user's process, or one that has just ended
