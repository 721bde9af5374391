"""A pool of worker processes that never outlives the step.

``concurrent.futures`` workers wait for work forever when their parent is killed with
kill -9; here the kernel ends them with it (prctl(2), ``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def worker_pool(
    workers: int, set_up: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of ``workers`` processes bound to this one; each calls ``set_up`` once."""
    return ProcessPoolExecutor(workers, initializer=_bind, initargs=(os.getpid(), set_up, arguments))


def bind(parent: int) -> None:
    """Have the kernel end this process with ``parent``."""
    if LIBC is not None:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _bind(parent: int, set_up: Callable[..., object] | None, arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the step's handler, which cleans up
    bind(parent)
    # The step may have trained a tokenizer: the threads that did it are not in this fork, and
    # `tokenizers` would wait for them for ever. The pool has a worker for every core anyhow.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if set_up is not None:
        set_up(*arguments)
