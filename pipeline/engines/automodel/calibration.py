"""A few real steps of a run, timed, and then no more: what ``lifecycle plan --calibrate`` asks for.

The run is built as it would be, on its own examples and in its own processes.  The first step warms up and
is not counted; after as many as were asked for, and one look at the validation loss, every process ends.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

from pipeline.stages.step import Step


class Calibration:
    """Counts the steps of one process; the main one writes the figures as the step's result."""

    def __init__(self, step: Step, steps: int) -> None:
        self._step, self._left = step, steps
        self._steps, self._tokens = 0, 0
        self._first: float | None = None

    @classmethod
    def of(cls, step: Step) -> Calibration | None:
        """What the job asks for; None where it is a run like any other."""
        steps = int(step.extra.get("calibrate", 0))
        return cls(step, steps) if steps else None

    def look(self, tokens: int, main: bool, ending: Callable[[], dict[str, Any]]) -> None:
        """A step is done, of so many tokens over all processes; raises ``SystemExit`` (0) after the last.

        ``ending`` is called by all processes then, and returns what is known of the whole run.
        """
        now = time.time()
        if self._first is None:
            self._first = now
            return
        self._steps, self._tokens = self._steps + 1, self._tokens + tokens
        if self._steps < self._left:
            return
        began = time.time()
        known = ending()
        if main:
            figures = {
                **known,
                "steps": self._steps,
                "seconds": now - self._first,
                "tokens": self._tokens,
                "first_step_ended": self._first,
                "validation_s": time.time() - began,
                "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
            self._step.finish(metrics=figures, headline=f"{self._steps} steps timed")
        raise SystemExit(0)
