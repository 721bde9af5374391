"""Steps that end badly, each in its own way (``settings["how"]``); see test_reasons.py."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time

from pipeline.stages.pool import worker_pool
from pipeline.stages.step import Step


def run(step: Step) -> None:
    how = step.settings["how"]
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "worker killed":
        with worker_pool(2) as pool:
            list(pool.map(die, range(4)))
    elif how == "worker's error":
        with worker_pool(2) as pool:
            list(pool.map(fail, range(4)))
    elif how == "memory":
        _ = bytearray(1 << 62)
    elif how == "disk":
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/else")
    elif how == "quota":
        raise OSError(errno.EDQUOT, "Disk quota exceeded", "/home/me/x")
    elif how == "folder removed":
        step.message("at work")
        shutil.rmtree(step.work)
        time.sleep(30)
    raise AssertionError(how)


def die(number: int) -> None:
    if number == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)


def fail(number: int) -> None:
    raise ValueError(f"worker {number}")
