"""Tell trackers of one step: ``python -m pipeline.tracking WORK/tracking.json OFFSET``.

The first line on standard output says ``ready``, or why a tracker cannot be had (exit status 2).  From
then on the metrics that are added to ``WORK/events.jsonl`` behind ``OFFSET`` are passed on.  One line on
standard input, the word for how the step ended, ends it: what is left is read, and ``WORK/result.json``
where the step finished.  An end of the input without a word means that the controller is gone.
"""

from __future__ import annotations

import contextlib
import json
import select
import sys
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.runner.events import EventReader
from pipeline.tracking.trackers import ENDED, Subject, Tracker, open_trackers

POLL_S = 0.5


def main(arguments: list[str]) -> int:
    subject_file, offset = arguments
    given = json.loads(Path(subject_file).read_text(encoding="utf-8"))
    work, settings = Path(given["work"]), schema.flat(given["settings"])
    subject = Subject(given["recipe"], given["stage"], given["identity"], settings, Path(given["folder"]))
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):  # what a library prints is no answer
        try:
            trackers = open_trackers(subject, given["tracking"])
        except Exception as error:
            print(f"{type(error).__name__}: {error}".replace("\n", " "), file=answers, flush=True)
            return 2
        print("ready", file=answers, flush=True)
        return follow(trackers, EventReader(work / "events.jsonl", int(offset)), work / "result.json")


def follow(trackers: list[Tracker], reader: EventReader, result: Path) -> int:
    """Pass on what is read until the step ended; 1 where a tracker failed on the way."""
    failed: set[str] = set()
    ended = ""
    while not ended:
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            word = sys.stdin.readline().strip()
            ended = word if word in ENDED else "interrupted"
        for event in reader.new_events():
            if event.get("kind") == "metric":
                values = numbers(event["values"])
                each(trackers, failed, lambda tracker, e=event, v=values: tracker.log(e["step"], v))
    figures = (
        numbers(json.loads(result.read_text(encoding="utf-8"))["metrics"]) if ended == "finished" else {}
    )
    each(trackers, failed, lambda tracker: tracker.finish(figures, ended))
    return 1 if failed else 0


def each(trackers: list[Tracker], failed: set[str], call: Any) -> None:
    """Call every tracker that has not failed; one that does is left alone from then on."""
    for tracker in trackers:
        if tracker.name in failed:
            continue
        try:
            call(tracker)
        except Exception as error:
            failed.add(tracker.name)
            print(f"{tracker.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The numbers among nested values, by dotted name."""
    return {
        key: float(value)
        for key, value in schema.flat(values).items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
