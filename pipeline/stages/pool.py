"""A pool of worker processes that never outlives the step.

``concurrent.futures`` workers wait for work forever when their parent is killed with
kill -9; here the kernel ends them with it (prctl(2), ``PR_SET_PDEATHSIG``).
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import ForkContext, ForkProcess
from types import TracebackType
from typing import Any

PR_SET_PDEATHSIG = 1
JOIN_S = 5.0
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class WorkerKilled(Exception):
    """A process of a pool was ended by SIGKILL: by the system, where memory ran out, or by somebody."""


class _Workers(ForkContext):
    """Makes the pool's processes as it would itself, and knows them when the pool has forgotten them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[multiprocessing.process.BaseProcess] = []

    def Process(self, *arguments: Any, **named: Any) -> ForkProcess:  # type: ignore[override]
        self.made.append(ForkProcess(*arguments, **named))
        return self.made[-1]  # type: ignore[return-value]


class WorkerPool(ProcessPoolExecutor):
    """``concurrent.futures``' pool; leaving its context says so where a worker was killed.

    The executor itself says only that "a process terminated abruptly", and ends the others by SIGTERM.
    """

    def __init__(
        self, workers: int, set_up: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
    ) -> None:
        self._made_by = _Workers()
        super().__init__(workers, self._made_by, initializer=_bind, initargs=(os.getpid(), set_up, arguments))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """As the executor's; raises :class:`WorkerKilled` in place of its own error."""
        left = super().__exit__(kind, value, trace)
        if isinstance(value, BrokenProcessPool):
            for worker in self._made_by.made:
                worker.join(JOIN_S)
            if any(worker.exitcode == -signal.SIGKILL for worker in self._made_by.made):
                raise WorkerKilled("a worker process was ended by SIGKILL") from value
        return left


def worker_pool(
    workers: int, set_up: Callable[..., object] | None = None, arguments: tuple[Any, ...] = ()
) -> WorkerPool:
    """A pool of ``workers`` processes bound to this one; each calls ``set_up`` once."""
    return WorkerPool(workers, set_up, arguments)


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
