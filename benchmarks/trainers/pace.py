"""Runs a contender's steps when it is told to, so that contenders can take turns.

The contender trains as it always does and calls :meth:`Pace.step` after each optimiser
step; that call waits until the next round is asked for on the standard input (a number of
steps; nothing: end), and says on the standard output how long the round took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from benchmarks.trainers.work import Work


class Pace:
    """``warm_up`` steps are not timed; everything else that is printed goes to the standard error."""

    def __init__(self, warm_up: int) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._left = warm_up
        self._work = Work()
        self._began = time.perf_counter()
        self._processor = time.process_time()
        self.extra: dict[str, Any] = {}

    def step(self, done: Work) -> None:
        """An optimiser step ended; ``done`` is what it was."""
        self._work += done
        self._left -= 1
        if self._left > 0:
            return
        seconds = time.perf_counter() - self._began
        said = {
            "seconds": seconds,
            "processor_s": time.process_time() - self._processor,
            "tokens": self._work.tokens,
            "squares": self._work.squares,
            "labels": self._work.labels,
            **self.extra,
        }
        print(json.dumps(said), file=self._answers, flush=True)
        wanted = sys.stdin.readline().strip()
        if not wanted:
            os._exit(0)  # in the middle of training: nothing is to be saved
        self._left, self._work = int(wanted), Work()
        self._began, self._processor = time.perf_counter(), time.process_time()
