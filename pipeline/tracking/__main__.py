"""Tell trackers of one step: ``python -m pipeline.tracking WORK/tracking.json OFFSET``.

The first line on standard output says ``ready``, or why a tracker cannot be had (exit status 2).  From
then on the metrics that are added to ``WORK/events.jsonl`` behind ``OFFSET`` are passed on.  One line on
standard input, the word for how the step ended, ends it: what is left is read, and ``WORK/result.json``
where the step finished.  An end of the input without a word means that the controller is gone.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.runner.events import EventReader
from pipeline.tracking.trackers import ENDED, Subject, Tracker, open_trackers

POLL_S = 0.5
RETRY_S = 20.0


def main(arguments: list[str]) -> int:
    subject_file, offset = arguments
    given = json.loads(Path(subject_file).read_text(encoding="utf-8"))
    work, settings = Path(given["work"]), schema.flat(given["settings"])
    subject = Subject(given["recipe"], given["stage"], given["identity"], settings, Path(given["folder"]))
    # What a library prints is no answer, in this process or in one that it starts.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        try:
            trackers = open_trackers(subject, given["tracking"])
        except Exception as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), file=answers)
            return 2
        print("ready", file=answers)
    return follow(trackers, EventReader(work / "events.jsonl", int(offset)), work / "result.json")


@dataclass
class Listener:
    """A tracker, and what it has not been told yet: kept while it cannot be reached, and told later."""

    tracker: Tracker
    waiting: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    again: float = 0.0  # time before which it is left alone

    def tell(self, now: float) -> None:
        """Pass on what waits, in order; at the first failure leave the rest for later."""
        while self.waiting and now >= self.again:
            try:
                self.tracker.log(*self.waiting[0])
            except Exception as error:
                self._failed(error)
                self.again = now + RETRY_S
                return
            del self.waiting[0]

    def finish(self, figures: dict[str, float], ended: str) -> bool:
        """The last words; whether everything was told."""
        self.again = 0.0
        self.tell(0.0)
        try:
            self.tracker.finish(figures, ended)
        except Exception as error:
            self._failed(error)
            return False
        return not self.waiting

    def _failed(self, error: Exception) -> None:
        print(f"{self.tracker.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def follow(trackers: list[Tracker], reader: EventReader, result: Path) -> int:
    """Pass on what is read until the step ended; 1 where a tracker was not told everything."""
    listeners = [Listener(tracker) for tracker in trackers]
    ended = ""
    while not ended:
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            word = sys.stdin.readline().strip()
            ended = word if word in ENDED else "interrupted"
        for event in reader.new_events():
            if event.get("kind") == "metric":
                for listener in listeners:
                    listener.waiting.append((event["step"], numbers(event["values"])))
        for listener in listeners:
            listener.tell(time.monotonic())
    figures: dict[str, float] = {}
    if ended == "finished":
        figures = numbers(json.loads(result.read_text(encoding="utf-8"))["metrics"])
    told = [listener.finish(figures, ended) for listener in listeners]
    return 0 if all(told) else 1


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among nested values, by dotted name."""
    return {
        key: float(value)
        for key, value in schema.flat(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
