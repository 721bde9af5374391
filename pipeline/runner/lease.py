"""One step, one controller: a lock on the stage's folder for as long as the step runs."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import LifecycleError


@contextmanager
def lease(folder: Path, what: str) -> Iterator[int]:
    """Hold the folder's lock; raise :class:`LifecycleError` naming the holder if it is taken.

    Gives the lock's descriptor, for a step to inherit: the kernel drops the lock when the
    last process that has it dies, however it dies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lease", "a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            holder = json.loads(handle.read() or "{}")
            raise LifecycleError(
                f"{what} is being run by process {holder.get('pid', '?')} on {holder.get('host', '?')} "
                f"since {holder.get('since', '?')}; wait for it, or stop it first"
            ) from None
        handle.truncate(0)
        json.dump(
            {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")},
            handle,
        )
        handle.flush()
        try:
            yield handle.fileno()
        finally:
            handle.truncate(0)
