"""One step, one controller: who works on a step, and how another takes it over.

The lease *is* the folder that the step works in::

    runs/RECIPE/STAGE/.work/<key>.<epoch>/holder.json

``epoch`` is a fencing token: it only ever grows.  Taking a step over renames the folder
to the next epoch, so every path that the former holder knows stops to exist: its step
can write nothing more, and its publish (a rename out of that folder) fails.  A holder
that was paused and wakes up late is fenced off by the file system, with no check that a
pause could come after.

Who may take over?  On the same machine (same boot) the kernel knows: the holder and its
step share a lock on ``holder.json`` that is gone when the last of them is.  In all other
cases (another machine on a shared disk, a holder that was stopped) a holder counts as
dead when its heartbeat, the modification time of ``holder.json``, stood still while the
observer's own monotonic clock ran for ``lease_s`` seconds.  No two clocks are compared,
so a clock that jumps changes nothing.  Even a wrong judgement costs work, never data.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline import strict_json
from pipeline.errors import LifecycleError
from pipeline.serving import processes
from pipeline.stages.seals import sync_path

HOLDER = "holder.json"
EPOCH = ".epoch"
BEATS = 6  # heartbeats in a lease: a few may be late
WATCH_S = 0.2


class Held(LifecycleError):
    """Another controller is at work on the step; exit status 1."""


class LeaseLost(LifecycleError):
    """Another controller took the step over while this one did not show up; exit status 1."""


@dataclass(frozen=True)
class Holder:
    """Who holds a lease: a process of a machine, and since when (for people only)."""

    pid: int
    start_time: int
    host: str
    boot: str
    since: str
    nonce: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class Lease:
    """A held lease.  Its heartbeat runs in a thread until :meth:`close`."""

    def __init__(self, folder: Path, descriptor: int, holder: Holder, lease_s: float) -> None:
        self.folder = folder
        self.descriptor = descriptor  # a step inherits it, so that the lock lives as long as the step
        self.holder = holder
        self._stop = threading.Event()
        self._beat = threading.Thread(target=self._keep_beating, args=(lease_s / BEATS,), daemon=True)
        self._beat.start()

    @property
    def epoch(self) -> int:
        return epoch_of(self.folder)

    def held(self) -> bool:
        """Whether nobody took over: the folder is where it was and names this holder."""
        try:
            return (self.folder / HOLDER).stat().st_ino == os.fstat(self.descriptor).st_ino
        except FileNotFoundError:
            return False

    def require(self) -> None:
        """Raise :class:`LeaseLost` unless the lease is still held."""
        if not self.held():
            if not self.folder.exists() and not self._taken_over():
                raise LeaseLost(
                    f"the folder of a step at work, {self.folder}, was removed or moved while it ran: nothing was "
                    "published, and what it had done is gone with it. Leave the runs folder alone while a step works; "
                    "the same command begins the step again"
                )
            raise LeaseLost(
                f"another controller took {self.folder.parent.parent.name} over while this one showed no sign "
                "of life; nothing was published from here. `lifecycle status` shows who is at work"
            )

    def _taken_over(self) -> bool:
        """Whether another epoch of this step is there, or was and has published."""
        work, key = self.folder.parent, self.folder.name.rpartition(".")[0]
        return any(work.glob(f"{key}.*")) or (work.parent / key).exists()

    def close(self) -> None:
        """Give the lease up; what is in the folder stays for whoever goes on."""
        self._stop.set()
        self._beat.join()
        if self.held():
            (self.folder / HOLDER).unlink(missing_ok=True)
        os.close(self.descriptor)

    def _keep_beating(self, every_s: float) -> None:
        while not self._stop.wait(every_s):
            with suppress(OSError):  # a disk that hiccups is the holder's to report, not the heart's
                os.utime(self.descriptor)


@contextmanager
def lease(
    stage: Path, key: str, what: str, *, lease_s: float, wait: bool = False, tell: Callable[[str], None]
) -> Iterator[Lease]:
    """Hold the step ``key`` of a stage's folder; an interrupted attempt's work comes with it.

    Raises :class:`Held` when another controller is at work on it (with ``wait``: waits for
    that one to end).  ``tell`` is given a line when it takes a while to find out.
    """
    taken = acquire(stage, key, what, lease_s=lease_s, wait=wait, tell=tell)
    try:
        yield taken
    except OSError:
        taken.require()  # paths that vanished under the holder have this one reason
        raise
    finally:
        taken.close()


def acquire(
    stage: Path, key: str, what: str, *, lease_s: float, wait: bool = False, tell: Callable[[str], None]
) -> Lease:
    """As :func:`lease`, for callers that close it themselves."""
    work = stage / ".work"
    work.mkdir(parents=True, exist_ok=True)
    claim = work / f".claim-{secrets.token_hex(4)}"
    claim.mkdir()
    descriptor, holder = _write_holder(claim / HOLDER)
    watch = _Watch(lease_s)
    told = False
    try:
        while True:
            with _one_at_a_time(work, lease_s):
                _sweep(work)
                current = attempt(stage, key)
                if current is None or watch.over(current):
                    folder = _enter(work, key, current, claim)
                    if folder is not None:
                        return Lease(folder, descriptor, holder, lease_s)
                    continue
            if watch.is_alive(current) and not wait:
                raise Held(
                    f"{what} is being run by {holder_of(current) or 'another controller'}; wait for it "
                    "(--wait), or stop it first"
                )
            if not told:
                told = True
                tell(f"{what}: held by {holder_of(current) or 'another controller'}; {watch.words(wait)}")
            time.sleep(WATCH_S)
    except BaseException:
        os.close(descriptor)
        shutil.rmtree(claim, ignore_errors=True)
        raise


def attempt(stage: Path, key: str) -> Path | None:
    """The folder of the step's attempt, at work or interrupted; None where there is none."""
    found = [path for path in attempts(stage) if path.name.rpartition(".")[0] == key]
    return max(found, key=epoch_of, default=None)


def attempts(stage: Path) -> list[Path]:
    """The attempts' folders of all steps of a stage."""
    work = stage / ".work"
    if not work.is_dir():
        return []
    return sorted(path for path in work.iterdir() if re.fullmatch(r"\w+\.\d+", path.name) and path.is_dir())


def epoch_of(folder: Path) -> int:
    """The fencing token in a work folder's name."""
    return int(folder.name.rpartition(".")[2])


def holder_of(folder: Path) -> Holder | None:
    """Who holds, or last held, a work folder; None where it was given up."""
    try:
        return Holder(**strict_json.loads((folder / HOLDER).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def live_holder(folder: Path) -> Holder | None:
    """The holder of a work folder unless the kernel says that it is gone; takes no time.

    A holder on another machine counts as alive here: only watching it could tell.
    """
    holder = holder_of(folder)
    return None if holder is None or _gone(folder, holder) else holder


def silence_s(folder: Path) -> float:
    """Seconds since the holder's last heartbeat by the clocks as they are: for people only."""
    try:
        return max(0.0, time.time() - (folder / HOLDER).stat().st_mtime)
    except FileNotFoundError:
        return 0.0


class _Watch:
    """Whether the holder of a folder is alive, as far as it was seen up to now."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._seen: tuple[str, int, int] | None = None
        self._since = 0.0
        self._beating = False

    def over(self, folder: Path) -> bool:
        """Whether the folder may be taken over: given up, its holder gone, or silent for too long."""
        try:
            with open(folder / HOLDER, "rb") as handle:  # opening makes a network disk look again
                stat = os.fstat(handle.fileno())
        except FileNotFoundError:
            return True
        holder = holder_of(folder)
        if holder is not None and _gone(folder, holder):
            return True
        seen = (folder.name, stat.st_ino, stat.st_mtime_ns)
        if seen != self._seen:
            self._beating = self._seen is not None and self._seen[:2] == seen[:2]
            self._seen, self._since = seen, time.monotonic()
        return time.monotonic() - self._since > self._lease_s

    def is_alive(self, folder: Path) -> bool:
        """Whether the holder is known to be at work: seen running here, or heard to beat."""
        holder = holder_of(folder)
        return self._beating or (holder is not None and _runs_here(holder))

    def words(self, wait: bool) -> str:
        if wait:
            return "waiting for it to end"
        return f"waiting up to {self._lease_s:g} s for a sign of life"


def _enter(work: Path, key: str, current: Path | None, claim: Path) -> Path | None:
    """Make the claim good: a new folder, or the next epoch of ``current``; None when another was first."""
    epoch = 1 + max([_last_epoch(work), *(epoch_of(path) for path in attempts(work.parent))])
    folder = work / f"{key}.{epoch}"
    try:
        if current is None:
            claim.rename(folder)  # with its holder in it; fails where the folder exists
        else:
            current.rename(folder)
            os.replace(claim / HOLDER, folder / HOLDER)
            claim.rmdir()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY) and claim.exists():
            return None  # another was first
        raise
    _note_epoch(work, epoch)
    # Two machines that saw no folder of the step may both have made one: whoever sees the
    # other's steps back, and at least the later of the two does.
    others = [p for p in attempts(work.parent) if p.name.rpartition(".")[0] == key and p != folder]
    if current is None and others:
        folder.rename(claim)
        time.sleep(WATCH_S * (1 + secrets.randbelow(5)))
        return None
    sync_path(work)
    return folder


def _sweep(work: Path) -> None:
    """Remove the claims of controllers that died while making them."""
    for claim in work.glob(".claim-*"):
        holder = holder_of(claim)
        if holder is not None and _gone(claim, holder):
            shutil.rmtree(claim, ignore_errors=True)


def _last_epoch(work: Path) -> int:
    try:
        return int((work / EPOCH).read_text(encoding="ascii"))
    except (FileNotFoundError, ValueError):
        return 0


def _note_epoch(work: Path, epoch: int) -> None:
    """Remember the epoch beyond the life of its folder: it must never come again."""
    part = work / f"{EPOCH}.{os.getpid()}.part"
    part.write_text(str(epoch), encoding="ascii")
    os.replace(part, work / EPOCH)


def _write_holder(path: Path) -> tuple[int, Holder]:
    """Write a holder file that is locked before anybody else can see it."""
    own = processes.find(os.getpid())
    assert own is not None
    holder = Holder(
        pid=own.pid,
        start_time=own.start_time,
        host=socket.gethostname(),
        boot=processes.boot_id(),
        since=time.strftime("%Y-%m-%d %H:%M:%S"),
        nonce=secrets.token_hex(8),
    )
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    with suppress(OSError):  # a file system without locks: the heartbeat alone decides
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(descriptor, (strict_json.dumps(asdict(holder), indent=2) + "\n").encode("utf-8"))
    return descriptor, holder


def _gone(folder: Path, holder: Holder) -> bool:
    """Whether the kernel proves that the holder and its step are dead."""
    if holder.boot != processes.boot_id():
        return False
    try:
        descriptor = os.open(folder / HOLDER, os.O_RDONLY)
    except OSError:
        return False
    try:
        # Shared: two who look at the same time must not take each other for the holder.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:  # no locks on this file system
        return processes.find(holder.pid) is None
    finally:
        os.close(descriptor)


def _runs_here(holder: Holder) -> bool:
    """Whether the holder's controller is seen running on this machine, and not stopped."""
    if holder.boot != processes.boot_id():
        return False
    process = processes.find(holder.pid)
    return process is not None and process.start_time == holder.start_time and process.state not in "TtZX"


@contextmanager
def _one_at_a_time(work: Path, patience_s: float) -> Iterator[None]:
    """Keep the controllers of this machine out of each other's way for the moment of a claim.

    A courtesy that spares retries, not what keeps claims safe: one that is paused in the
    middle of its claim must not hold up the others for ever.
    """
    with open(work / ".mutex", "a", encoding="ascii") as handle:
        until = time.monotonic() + patience_s
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break  # no locks on this file system
        yield
