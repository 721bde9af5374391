"""Attempts at a step: what an interrupted one left, and what of it the next may use.

Each attempt adds a line to ``attempts.jsonl`` in the step's work folder: when, where, and
with which code and toolchain.  The manifest keeps them all, so that a model trained in
three sittings says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.runner.display import Rate, count, duration
from pipeline.runner.events import EventReader
from pipeline.stages.seals import keep_sound, read_seals

ATTEMPTS = "attempts.jsonl"
CURVE_POINTS = 300


@dataclass(frozen=True)
class Progress:
    """How far a step at work, or interrupted, has come; empty where it has said nothing."""

    words: str = ""
    left: str = ""

    @classmethod
    def of(cls, work: Path) -> Progress:
        """Read off the step's events, on their own times."""
        rate, phase, unit = Rate(), "", ""
        for event in EventReader(work / "events.jsonl").new_events():
            if event.get("kind") == "phase":
                phase, rate = str(event["name"]), Rate()
            elif event.get("kind") == "progress":
                rate.add(event["done"], event["total"], event["time"])
                unit = str(event["unit"])
        words = [phase] if phase else []
        if rate.total:
            words.append(f"{count(rate.done)}/{count(rate.total)} {unit}")
        left = rate.seconds_left() if rate.done < rate.total else None
        return cls(", ".join(words), "" if left is None else f"{duration(left)} left")


def read_attempts(work: Path) -> list[dict[str, Any]]:
    """The attempts that worked in a folder, oldest first; a torn line is passed over."""
    return [line for line in EventReader(work / ATTEMPTS).new_events() if "started" in line]


def spent(work: Path) -> tuple[float, float]:
    """Seconds of work and the largest memory (GB) of the attempts before the last, by what their events say.

    A controller that was killed wrote down nothing at the end, so what counts is when a step last said something, and
    how much memory it had then.
    """
    attempts = read_attempts(work)
    events = work / "events.jsonl"
    size = events.stat().st_size if events.exists() else 0
    begins = [attempt.get("events", size) for attempt in attempts]
    seconds = peak = 0.0
    for attempt, begin, end in zip(attempts, begins, begins[1:], strict=False):
        said = [event for event in EventReader(events, begin).new_events(end) if "time" in event]
        if said and "time" in attempt:
            seconds += max(0.0, said[-1]["time"] - attempt["time"])
            peak = max(peak, *(float(event.get("memory_gb", 0.0)) for event in said))
    return seconds, peak


def note_attempt(work: Path, made_by: dict[str, Any]) -> None:
    """Write down that an attempt begins, with the code and the toolchain that it runs on."""
    events = work / "events.jsonl"
    line = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "time": time.time(),
        "events": events.stat().st_size if events.exists() else 0,
        "host": made_by["machine"]["host"],
        "source_digest": made_by["code"]["source_digest"],
        "lock_digest": made_by["toolchain"]["lock_digest"],
    }
    end_torn_line(work / ATTEMPTS)
    with open(work / ATTEMPTS, "a", encoding="utf-8") as handle:
        handle.write(strict_json.dumps(line) + "\n")


def can_go_on(work: Path) -> str | None:
    """What the interrupted attempt in a folder left to go on from, in words; None where nothing."""
    pieces = sorted(read_seals(work))
    if not pieces:
        return None
    attempts = read_attempts(work)
    when = f" of {attempts[-1]['started']}" if attempts else ""
    far = Progress.of(work).words
    return f"the interrupted attempt{when} goes on" + (f"; it had come to {far}" if far else "")


def take_up(
    work: Path,
    made_by: dict[str, Any],
    strict: bool,
    quarantine: Callable[[Path, str], object],
    tell: Callable[[str], None],
) -> None:
    """Make an interrupted attempt's work safe to go on from.

    What seals prove is kept.  Code or a toolchain that changed since is told, and with
    ``strict`` the whole state goes to quarantine.
    """
    before = read_attempts(work)
    changed = _changes(before[-1], made_by) if before else []
    state = work / "state"
    if changed and state.is_dir() and any(state.iterdir()):
        if strict:
            quarantine(state, f"--strict: {' and '.join(changed)} the interrupted attempt")
            tell(f"{' and '.join(changed)} the interrupted attempt: its work is in quarantine (--strict)")
        else:
            tell(f"{' and '.join(changed)} the interrupted attempt; it goes on all the same")
    for line in keep_sound(work, quarantine):
        tell(line)


def curves(work: Path) -> dict[str, list[list[float]]]:
    """Every metric of the step's events as ``[[step, value], ...]``, thinned to a few hundred points.

    An interrupted step reports some optimiser steps twice; the later report counts.
    """
    points: dict[str, dict[int, float]] = {}
    for event in EventReader(work / "events.jsonl").new_events():
        if event.get("kind") == "metric":
            for name, value in event["values"].items():
                points.setdefault(name, {})[int(event["step"])] = float(value)
    found = {}
    for name, values in sorted(points.items()):
        steps = sorted(values)
        every = -(-len(steps) // CURVE_POINTS)
        kept = steps[::every]
        if kept[-1] != steps[-1]:
            kept.append(steps[-1])
        found[name] = [[step, values[step]] for step in kept]
    return found


def end_torn_line(path: Path) -> None:
    """Close a line that a killed attempt left half written, so that the next one starts clean."""
    if path.exists() and path.stat().st_size:
        with open(path, "rb+") as handle:
            handle.seek(-1, 2)
            if handle.read(1) != b"\n":
                handle.write(b"\n")


def _changes(attempt: dict[str, Any], made_by: dict[str, Any]) -> list[str]:
    found = []
    if attempt.get("source_digest") != made_by["code"]["source_digest"]:
        found.append("code changed since")
    if attempt.get("lock_digest") != made_by["toolchain"]["lock_digest"]:
        found.append("the toolchain changed since")
    return found
