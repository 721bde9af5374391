"""The ways in which a run ends early, each with its own exit status.

``UserError`` is for what the person who typed the command can mend (exit 2): the
message says what was wrong, where, and what to do.  ``StepFailed`` is for a step that
broke (exit 1) and points at its log, ``Damaged`` for an artifact that rotted (exit 1).  ``GateClosed`` is for a check that stopped the
chain on purpose (exit 3).  None of them shows a traceback.
"""

from __future__ import annotations


class LifecycleError(Exception):
    """Base of all errors that are shown to a person as plain text."""

    exit_status = 1


class UserError(LifecycleError):
    """A mistake in a recipe, a setting, an input or the surroundings; exit status 2."""

    exit_status = 2


class StepFailed(LifecycleError):
    """A step's process ended badly; its log holds the details; exit status 1."""

    exit_status = 1


class Damaged(LifecycleError):
    """An artifact is not what was published; found before anything used it; exit status 1."""

    exit_status = 1


class GateClosed(LifecycleError):
    """A gate between two stages stopped the chain; exit status 3."""

    exit_status = 3


class Interrupted(LifecycleError):
    """Ctrl-C, SIGTERM or SIGHUP reached the controller; exit status 130, 143 or 129."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_status = 128 + signal_number
