"""A pool of worker processes that never outlives the step.

``concurrent.futures`` workers wait for work forever when their parent is killed with
kill -9; here the kernel ends them with it (prctl(2), ``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def worker_pool(workers: int) -> ProcessPoolExecutor:
    """A pool of ``workers`` processes bound to this one."""
    return ProcessPoolExecutor(workers, initializer=_bind, initargs=(os.getpid(),))


def _bind(parent: int) -> None:
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the step's handler, which cleans up
    if os.getppid() != parent:
        os._exit(1)
