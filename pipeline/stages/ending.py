"""How the work of a step's process ended, as its exit status tells the controller."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Callable

from pipeline.stages.step import InputError, Step
from pipeline.strict_json import NotFinite

DISK_FULL = 28  # ENOSPC; an event could not be written either
INTERRUPTED = 75  # training that stopped on SIGTERM after writing a checkpoint


def ending(step: Step, work: Callable[[], object], tells: bool = True) -> int:
    """Do ``work`` and return 0, 2 for the user's mistake, or :data:`DISK_FULL`; all else is raised.

    With ``tells`` a mistake is put into the step's events.
    """
    try:
        work()
    except (InputError, NotFinite) as error:  # a figure that nobody looked at is not published either
        if tells:
            step.error(str(error))
        return 2
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        traceback.print_exc()
        sys.stderr.flush()
        return DISK_FULL
    return 0
