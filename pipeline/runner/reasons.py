"""Why a step's process ended, in words that lead to the right remedy."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pipeline.stages.ending import OUT_OF_MEMORY, WORKER_KILLED

ALMOST_NOTHING = 1_000_000  # bytes
FEW_INODES = 8  # a step's next file or folder would be refused
VMSTAT = Path("/proc/vmstat")


def oom_kills() -> int:
    """How many processes this machine's kernel ended because memory ran out, since it started; 0 where unknown."""
    try:
        lines = VMSTAT.read_text(encoding="ascii").splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def failure(
    stage: str, status: int, work: Path, errors: list[str], kills_before: int, peak_memory_gb: float
) -> str:
    """What to tell of a step that ended badly: how, why as far as can be known, its log's end, and what to do.

    ``status`` is negative for a signal; ``kills_before`` is what :func:`oom_kills` said when the step began.
    """
    log = work / "log.txt"
    tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:] if log.exists() else []
    lines = [f"{stage} {_how(status, kills_before, peak_memory_gb)}.", *errors]
    if full := disk_full(work):
        lines.append(f"{full}: free some space first.")
    lines += [*(f"  | {line}" for line in tail), f"Its whole log: {log}"]
    lines.append("The same command tries again and goes on from its last checkpoint.")
    return "\n".join(lines)


def _how(status: int, kills_before: int, peak_memory_gb: float) -> str:
    if status == OUT_OF_MEMORY:
        how = "failed: memory ran out"
    elif status in (-signal.SIGKILL, WORKER_KILLED):
        who = "was" if status < 0 else "failed: one of its processes was"
        why = (
            "by the system, because memory ran out"
            if oom_kills() > kills_before
            else "and not from here: most likely memory ran out (a container's or a cluster's limit tells nobody)"
        )
        how = f"{who} killed (signal 9), {why}"
    elif status < 0:
        return f"was ended by signal {signal.Signals(-status).name}"
    else:
        return f"failed (status {status})"
    held = f"; its largest process held {peak_memory_gb:.1f} GB" if peak_memory_gb >= 0.1 else ""
    return f"{how}{held}. Smaller batches, fewer workers or processes, or a machine with more memory help"


def disk_full(folder: Path) -> str | None:
    """What the disk of a folder has run out of, in words; None where there is room."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    disk = os.statvfs(folder)
    if disk.f_files and disk.f_favail < FEW_INODES:
        return (
            f"the disk of {folder} has no inodes left: it has room for {disk.f_files:,} files and folders, all in use, "
            "however small they are"
        )
    if disk.f_bavail * disk.f_frsize < ALMOST_NOTHING:
        return f"the disk of {folder} is full"
    return None
