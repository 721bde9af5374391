"""The gate between evaluation and export: is the aligned model fit to be served?

It compares the last model with its parent, on the figures that evaluation measured, and
closes when the last model is worse beyond the recipe's tolerance.  An override needs a
reason (``gate.override_reason``), which the export's manifest keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline import schema


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


def judge(metrics: dict[str, Any], tolerance: schema.Gate) -> Verdict:
    """Hold the ``gate`` figures of an evaluation against the recipe's tolerances.

    A figure that could not be measured (no held-out pairs of a kind, or no parent) is
    named as not checked and does not close the gate.
    """
    figures = metrics.get("gate") or {}
    model, parent = figures.get("model"), figures.get("parent")
    checks: list[str] = []
    failures: list[str] = []

    def hold(name: str, value: float | None, passes: bool, words: str) -> None:
        if value is None:
            checks.append(f"{name}: not checked (no figure)")
            return
        checks.append(words)
        if not passes:
            failures.append(words)

    if model is None or parent is None:
        return Verdict(True, ["nothing to compare: one model only"], [], tolerance.override_reason)

    loss, before = figures.get("answer_loss"), figures.get("parent_answer_loss")
    rise = (loss - before) / before if loss is not None and before else None
    hold(
        "answer loss",
        rise,
        rise is not None and rise <= tolerance.max_answer_loss_rise,
        f"answer loss of {model} against {parent}: {_percent(rise)} (at most +{tolerance.max_answer_loss_rise:.0%})",
    )
    interval = figures.get("content_accuracy_change_ci")
    upper = interval[1] if interval else None
    hold(
        "content accuracy",
        upper,
        upper is not None and upper >= -tolerance.max_content_accuracy_fall,
        f"content accuracy change: {_points(figures.get('content_accuracy_change'))}, 95% interval up to "
        f"{_points(upper)} (at least {_points(-tolerance.max_content_accuracy_fall)})",
    )
    style, style_before = figures.get("style_accuracy"), figures.get("parent_style_accuracy")
    gain = style - style_before if style is not None and style_before is not None else None
    hold(
        "style accuracy",
        gain,
        gain is not None and gain >= tolerance.min_style_accuracy_rise,
        f"style preference accuracy change: {_points(gain)} (at least {_points(tolerance.min_style_accuracy_rise)})",
    )
    return Verdict(not failures, checks, failures, tolerance.override_reason)


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:+.1%}"


def _points(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:+.1f} points"
