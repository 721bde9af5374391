"""Why a step ended, in words that lead to the right remedy."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipeline.errors import LifecycleError, StepFailed, UserError
from pipeline.runner import reasons
from pipeline.runner.display import Display
from pipeline.runner.execute import execute
from pipeline.runner.lease import acquire
from pipeline.toolchains import Toolchain


def end(tmp_path: Path, how: str) -> LifecycleError:
    """How the controller reports a step of bad_endings.py."""
    held = acquire(tmp_path / "light" / "train", "0" * 12, "light/train", lease_s=30, tell=print)
    job: dict[str, Any] = {
        "stage": "train",
        "module": "tests.unit.bad_endings",
        "recipe": "light",
        "identity": "0" * 64,
        "settings": {"how": how},
        "inputs": {},
        "work": str(held.folder),
        "threads": 1,
    }
    try:
        with pytest.raises(LifecycleError) as ended:
            execute(job, Toolchain("controller"), Display(Console(file=io.StringIO())), held, 5.0)
    finally:
        held.close()
    return ended.value


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("killed", StepFailed, "train was killed (signal 9), and not from here: most likely memory ran out"),
        (
            "worker killed",
            StepFailed,
            "train failed: one of its processes was killed (signal 9), and not from here",
        ),
        ("worker's error", StepFailed, "train failed (status 1).\n"),
        ("memory", StepFailed, "train failed: memory ran out"),
        ("disk", UserError, "train: a disk is full, or a quota used up, as the end of "),
        ("quota", UserError, "train: a disk is full, or a quota used up, as the end of "),
        ("folder removed", LifecycleError, "was removed or moved while it ran: nothing was published"),
    ],
)
def test_the_reason_is_the_right_one(tmp_path: Path, how: str, kind: type, words: str) -> None:
    error = end(tmp_path, how)
    assert isinstance(error, kind)
    assert words in str(error)
    assert ("largest process" in str(error)) <= ("memory ran out" in str(error))


def test_the_systems_own_count_makes_a_guess_a_fact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vmstat = tmp_path / "vmstat"
    monkeypatch.setattr(reasons, "VMSTAT", vmstat)
    assert reasons.oom_kills() == 0
    vmstat.write_text("nr_free_pages 5\noom_kill 3\n")
    told = reasons.failure("align", -9, tmp_path, [], kills_before=2, peak_memory_gb=7.25)
    assert told.startswith(
        "align was killed (signal 9), by the system, because memory ran out; its largest process held 7.2 GB. Smaller"
    )
    assert "most likely" in reasons.failure("align", 137, tmp_path, [], kills_before=3, peak_memory_gb=0.0)
    assert "signal SIGSEGV" in reasons.failure("align", -11, tmp_path, ["why"], 3, 0.0)


def test_a_disk_with_room_is_not_called_full(tmp_path: Path) -> None:
    assert reasons.disk_full(tmp_path) is None
    assert reasons.disk_full(tmp_path / "not" / "there") is None
