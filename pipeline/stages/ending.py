"""How the work of a step's process ended, as its exit status tells the controller."""

from __future__ import annotations

import errno
import re
import sys
import traceback
from collections.abc import Callable

from pipeline.stages.pool import WorkerKilled
from pipeline.stages.step import InputError, Step
from pipeline.strict_json import NotFinite

DISK_FULL = 28  # ENOSPC; an event could not be written either
INTERRUPTED = 75  # training that stopped on SIGTERM after writing a checkpoint
WORKER_KILLED = 137  # one of the step's processes ended by SIGKILL, as shells number it
OUT_OF_MEMORY = 12  # ENOMEM
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_MEMORY = re.compile(
    r"can't allocate memory|CUDA out of memory|std::bad_alloc|cannot allocate memory", re.I
)


def ending(step: Step, work: Callable[[], object], tells: bool = True) -> int:
    """Do ``work`` and return 0, 2 for the user's mistake, or what ran out; all else is raised.

    With ``tells`` a mistake is put into the step's events.
    """
    try:
        work()
    except (InputError, NotFinite) as error:  # a figure that nobody looked at is not published either
        if tells:
            step.error(str(error))
        return 2
    except WorkerKilled:
        return _told_in_the_log(WORKER_KILLED)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            return _told_in_the_log(DISK_FULL)
        if _memory_ran_out(error):
            return _told_in_the_log(OUT_OF_MEMORY)
        raise
    return 0


def _memory_ran_out(error: Exception) -> bool:
    """Python's own error, the system's, or PyTorch's, which is a RuntimeError that says so."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and bool(NO_MEMORY.search(str(error)))


def _told_in_the_log(status: int) -> int:
    traceback.print_exc()
    sys.stderr.flush()
    return status
