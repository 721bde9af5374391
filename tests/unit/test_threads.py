"""How the threads of steps and servers wait: one place says it for all (odd machine: one whose cores have other work)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.runner.execute import step_environment
from pipeline.stages.deploy import triton
from pipeline.threads import thread_count, thread_environment
from pipeline.toolchains import Toolchain


def test_steps_and_servers_let_their_threads_sleep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning, they take the cores from the thread that they wait for: 60 tokens a second instead of 12,000."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    for environment in (step_environment(Toolchain("core"), 3), triton.environment(3, tmp_path)):
        assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
        assert {environment[name] for name in thread_environment(3) if name.endswith("THREADS")} == {"3"}


def test_who_knows_better_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "100000")
    assert step_environment(Toolchain("core"), 2)["GOMP_SPINCOUNT"] == "100000"


def test_a_step_takes_the_cores_that_it_may_run_on() -> None:
    assert thread_count(0) == len(os.sched_getaffinity(0))
    assert thread_count(7) == 7
