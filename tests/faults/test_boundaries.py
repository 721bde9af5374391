"""A fault at every file operation of the controller and of every step.

The operations are listed by a library that stands between the processes and the system
(``inject.c``); then, for each, a run with the fault, and a run without.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import FULL
from tests.faults.harness import TALLY, TRACEBACK, Light, Reader, operations, wait_gone

KINDS = ("kill", "torn", "ENOSPC", "EIO", "EROFS")
SHORT_EVERY = {"kill": 12, "torn": 9, "ENOSPC": 40, "EIO": 40, "EROFS": 60}  # of make test
MEANING = {
    "kill": "SIGKILL before a file operation",
    "torn": "SIGKILL in the middle of a write",
    "ENOSPC": "disk full from a file operation on",
    "EIO": "I/O error at a file operation",
    "EROFS": "disk read-only from a file operation on",
}


@pytest.fixture(scope="module")
def boundaries(place: Path, documents: Path, shim: Path) -> list[tuple[str, str]]:
    """All operations that change something, which two undisturbed runs must agree on."""
    found = []
    for number in range(2):
        light = Light(Path(tempfile.mkdtemp(dir=place)), documents)
        found.append(operations(light, shim, place / f"operations-{number}"))
    roles = [dict(each) for each in found]
    assert roles[0] == roles[1]
    assert len(found[0]) > 300
    return found[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_at_every_boundary(
    kind: str,
    boundaries: list[tuple[str, str]],
    whole: dict[str, Any],
    place: Path,
    documents: Path,
    shim: Path,
) -> None:
    chosen = [at for at, name in boundaries if kind != "torn" or name == "write"]
    if not FULL:
        chosen = chosen[:: SHORT_EVERY[kind]]
    failures = []

    def trial(at: str) -> None:
        light = Light(Path(tempfile.mkdtemp(dir=place)), documents)
        try:
            one_fault(light, kind, at, whole, shim)
        except AssertionError as error:
            failures.append(f"{kind} at {at} ({dict(boundaries)[at]}): {error}")
        finally:
            shutil.rmtree(light.runs, ignore_errors=True)

    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as pool:
        list(pool.map(trial, chosen))
    print(f"{kind}: {len(chosen)} of {len(boundaries)} boundaries")
    assert not failures, "\n\n".join(failures[:5]) + f"\n\n{len(failures)} of {len(chosen)} failed"


def one_fault(light: Light, kind: str, at: str, whole: dict[str, Any], shim: Path) -> None:
    """The chain with one fault, and again without."""
    fired = light.runs.with_suffix(".fired")
    reader = Reader(light.runs)
    with TALLY.fault(MEANING[kind]):
        reader.start()
        try:
            status, output = light(
                LD_PRELOAD=str(shim),
                FAULT_ROOT=str(light.runs),
                FAULT_AT=at,
                FAULT_KIND=kind,
                FAULT_FIRED=str(fired),
            )
            assert fired.exists(), f"the fault never happened: {output}"
            fired.unlink()
            assert TRACEBACK not in output, output
            if status == 0:  # the operation was not vital
                assert light.published() == whole
            elif kind in ("ENOSPC", "EIO", "EROFS"):
                assert status in (1, 2), output
                assert "error: " in output
            wait_gone(light)
            light.must_end_as(whole)
            assert not light.quarantined()
        finally:
            reader.stop()
        assert not reader.faults, reader.faults[:3]
