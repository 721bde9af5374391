"""The faults suite: short in ``make test``, in full with ``make test-faults``.

The summary says how many faults were injected and how many ended well; none at all is a
failure, and so is a fault that was asked for and never happened.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import TALLY, Light

FULL = os.environ.get("FAULTS") == "full"
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def place() -> Iterator[Path]:
    """A folder in memory: thousands of flushes would wear a disk for nothing."""
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(prefix="faults-", dir=base))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def documents(place: Path) -> Path:
    path = place / "documents.jsonl"
    lines = [json.dumps({"text": f"document {n} " + "word " * n}) for n in range(12)]
    path.write_text("\n".join(lines) + "\n")
    os.utime(path, (1.6e9, 1.6e9))
    return path


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that counts file operations and injects faults."""
    target = tmp_path_factory.mktemp("shim") / "inject.so"
    command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(target), str(HERE / "inject.c"), "-ldl"]
    subprocess.run(command, check=True)
    return target


@pytest.fixture
def light(place: Path, documents: Path, request: pytest.FixtureRequest) -> Iterator[Light]:
    folder = Path(tempfile.mkdtemp(dir=place))
    yield Light(folder, documents)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def whole(place: Path, documents: Path) -> dict[str, Any]:
    """What an undisturbed run publishes."""
    folder = Path(tempfile.mkdtemp(dir=place))
    undisturbed = Light(folder, documents)
    status, output = undisturbed()
    assert status == 0, output
    return undisturbed.published()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    write = terminalreporter.write_line
    write("")
    write(f"{'fault':<52} {'injected':>9} {'ended well':>11}")
    for kind in sorted(TALLY.injected):
        write(f"{kind:<52} {TALLY.injected[kind]:>9} {TALLY.survived[kind]:>11}")
    write(f"{'in all':<52} {TALLY.injected.total():>9} {TALLY.survived.total():>11}")
    write(f"concurrent readers looked {TALLY.looks:,} times")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    asked = session.testscollected > session.testsfailed and not session.config.option.collectonly
    if asked and exitstatus == 0 and (not TALLY.injected or TALLY.injected != TALLY.survived):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
