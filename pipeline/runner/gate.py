"""The gate between evaluation and export: is the aligned model fit to be served?

It compares the last model with its parent, on the figures that evaluation measured, and
closes when the last model is worse beyond the recipe's tolerance.  An override needs a
reason (``gate.override_reason``), which the export's manifest keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pipeline import schema
from pipeline.wording import counted, fixed


@dataclass(frozen=True)
class Verdict:
    """Whether the gate is open, and each check in words."""

    passed: bool
    checks: list[str]
    failures: list[str]
    override_reason: str | None

    @property
    def open(self) -> bool:
        return self.passed or self.override_reason is not None

    def record(self) -> dict[str, Any]:
        """The verdict as a manifest keeps it."""
        return {
            "passed": self.passed,
            "checks": self.checks,
            "failures": self.failures,
            "override_reason": None if self.passed else self.override_reason,
        }


ENOUGH = 20  # answers, or pairs of a kind
LEAST = 5  # where evaluate.max_pairs asks for fewer than that


def judge(metrics: dict[str, Any], tolerance: schema.Gate) -> Verdict:
    """Hold the ``gate`` figures of an evaluation against the recipe's tolerances.

    Closed, too, where nothing could be measured, where a figure is not a number or rests on fewer than
    ``gate.min_pairs`` held-out items (not said: :data:`ENOUGH`, or as many as ``evaluate.max_pairs`` has looked at, but
    never fewer than :data:`LEAST`), and where no pair is held out of a kind that the model was aligned on.
    Of what the data do not have (no chats, no pairs of a kind) nothing is asked.
    """
    figures = metrics.get("gate") or {}
    if tolerance.min_pairs is None:
        least = max(LEAST, min(ENOUGH, figures.get("max_pairs", ENOUGH)))
        tolerance = replace(tolerance, min_pairs=least)
    model, parent = figures.get("model"), figures.get("parent")
    if model is None or parent is None:
        return Verdict(True, ["nothing to compare: one model only"], [], tolerance.override_reason)
    checks = [_answer_loss(figures, tolerance)]
    checks += [_kind(kind, entry, tolerance) for kind, entry in figures["kinds"].items()]
    unseen = [kind for kind in figures["aligned_on"] if not figures["kinds"].get(kind, {}).get("pairs")]
    checks += [
        Check(
            f"{kind} preference accuracy: not measured, for no pair of a kind that {model} was aligned on is held out",
            False,
        )
        for kind in unseen
    ]
    if all(check.passed is None for check in checks):
        checks.append(Check(f"nothing that is held out tells {model} from {parent}", False))
    return Verdict(
        all(check.passed is not False for check in checks),
        [check.words for check in checks],
        [check.words for check in checks if check.passed is False],
        tolerance.override_reason,
    )


@dataclass(frozen=True)
class Check:
    """One comparison in words; ``passed`` is None where the data have nothing to compare."""

    words: str
    passed: bool | None


def _answer_loss(figures: dict[str, Any], tolerance: schema.Gate) -> Check:
    count, rise, most = figures["answers"], figures["answer_loss_change"], tolerance.max_answer_loss_rise
    words = (
        f"answer loss of {figures['model']} against {figures['parent']}: {_percent(rise)} "
        f"({_between(figures['answer_loss_change_ci'], _percent)}, {counted(count, 'answer')}; at most +{most:.0%})"
    )
    return _held("answer loss", "answers", count, rise, tolerance, words, lambda: rise <= most)


def _kind(kind: str, entry: dict[str, Any], tolerance: schema.Gate) -> Check:
    """The accuracy on one kind of pairs: of style it must rise, of all else it must not fall."""
    change, interval, count = entry["change"], entry["change_ci"], entry["pairs"]
    measured = f"{kind} preference accuracy change: {_points(change)} ({_between(interval, _points)}, {counted(count, 'pair')}; "
    name = f"{kind} preference accuracy"
    if kind == "style":
        least = tolerance.min_style_accuracy_rise
        words = f"{measured}at least {_points(least)})"
        return _held(name, "pairs", count, change, tolerance, words, lambda: change >= least)
    content = kind == "content"
    fall = tolerance.max_content_accuracy_fall if content else tolerance.max_given_accuracy_fall
    words = f"{measured}the interval must reach {_points(-fall)})"
    upper = interval[1] if interval else None
    return _held(name, "pairs", count, upper, tolerance, words, lambda: interval[1] >= -fall)


def _held(
    name: str,
    items: str,
    count: int,
    value: float | None,
    tolerance: schema.Gate,
    words: str,
    passes: Callable[[], bool],
) -> Check:
    """Whether a figure passes, after whether it can be judged by at all."""
    if not count:
        return Check(f"{name}: not measured (no {items} are held out)", None)
    if value is None or not math.isfinite(value):
        return Check(f"{name}: not a number, over {count} {items}", False)
    if count < (tolerance.min_pairs or 1):
        return Check(
            f"{name}: {count} {items} are too few to judge by (gate.min_pairs = {tolerance.min_pairs})", False
        )
    return Check(words, passes())


def _between(interval: list[float] | None, form: Callable[[float], str]) -> str:
    return "no interval" if interval is None else f"95% interval {form(interval[0])} to {form(interval[1])}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{fixed(100 * value, 1, sign=True)}%"


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{fixed(100 * value, 1, sign=True)} points"
