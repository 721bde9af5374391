"""Toolchains: complete locks, no work when ready, and pip's failures in plain words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import toolchains
from pipeline.errors import UserError
from pipeline.toolchains import NAMES, ROOT, STAMP, Toolchain, create, failure_advice, pins


@pytest.mark.parametrize("name", NAMES)
def test_locks_pin_every_wanted_package_exactly(name: str) -> None:
    lock = Toolchain(name).lock
    lines = [line for line in lock.read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^\s+]+", line) for line in lines)
    pinned = {re.sub(r"[-_.]+", "-", package) for package in pins(lock)}
    for line in lock.with_suffix(".in").read_text().splitlines():
        wanted = re.match(r"[A-Za-z0-9._-]+", line)
        if wanted and not line.startswith("-"):
            assert re.sub(r"[-_.]+", "-", wanted.group(0)).lower() in pinned


def test_nothing_is_done_when_the_stamp_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_VENVS", str(tmp_path))
    monkeypatch.setattr(toolchains, "_call", lambda *_, **__: pytest.fail("pip was called"))
    toolchain = Toolchain("dev")
    with pytest.raises(UserError, match="is not installed: run `make env-dev`"):
        toolchain.require()
    toolchain.folder.mkdir()
    (toolchain.folder / STAMP).write_text(toolchain.lock_digest())
    create(toolchain)
    toolchain.require()
    (toolchain.folder / STAMP).write_text("another")
    with pytest.raises(UserError, match="does not match its lock"):
        toolchain.require()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("ERROR: No matching distribution found for torch==2.13.0", "torch==2.13.0 is not to be had"),
        ("  ERROR: Failed building wheel for fasttext\n", "fasttext could not be built; a C compiler"),
        ("error: [Errno 28] No space left on device", "no disk space left"),
        ("... ReadTimeoutError(...) Max retries exceeded", "could not be reached"),
        ("something else\n", "something else"),
    ],
)
def test_a_failed_install_names_the_package_and_what_to_do(output: str, words: str) -> None:
    assert words in failure_advice(output)


def test_a_failing_pip_is_reported_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIFECYCLE_VENVS", str(tmp_path / "venvs"))
    (tmp_path / "configs" / "toolchains").mkdir(parents=True)
    (tmp_path / "configs" / "toolchains" / "dev.lock").write_text("no-such-package-of-this-name==1.0\n")
    monkeypatch.setattr(toolchains, "ROOT", tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(toolchains.LifecycleError) as caught:
        create(Toolchain("dev", tmp_path))
    message = str(caught.value)
    assert "no-such-package-of-this-name==1.0" in message
    assert "make env-dev" in message
    assert (tmp_path / "venvs" / "dev-install.log").is_file()
    assert not Toolchain("dev", tmp_path).ready()


def test_two_at_once_build_an_environment_once(tmp_path: Path) -> None:
    """One is killed in the middle: the others begin it anew, and one of them builds it, whoever is first."""
    (tmp_path / "configs" / "toolchains").mkdir(parents=True)
    (tmp_path / "configs" / "toolchains" / "dev.lock").write_text("# nothing but the environment itself\n")
    program = (
        "import sys; from pathlib import Path; from pipeline.toolchains import Toolchain, create; "
        "create(Toolchain('dev', Path(sys.argv[1])))"
    )

    def begin() -> subprocess.Popen[str]:
        environment = {**os.environ, "LIFECYCLE_VENVS": str(tmp_path / "venvs")}
        command = [sys.executable, "-c", program, str(tmp_path)]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    killed = begin()
    assert killed.stdout is not None
    assert "installing" in killed.stdout.readline()
    killed.kill()
    killed.communicate()
    several = [begin() for _ in range(3)]
    said = [each.communicate()[0] for each in several]
    assert [each.returncode for each in several] == [0, 0, 0]
    assert "".join(said).count("installing") == 1
    assert (
        Toolchain("dev", tmp_path).lock_digest() == (tmp_path / "venvs" / "dev" / STAMP).read_text().strip()
    )
    assert (tmp_path / "venvs" / "dev" / "bin" / "python").exists()


def test_an_environment_half_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamp goes first: it may match again, when an older lock comes back."""
    monkeypatch.setenv("LIFECYCLE_VENVS", str(tmp_path))
    folder = Toolchain("dev").folder
    folder.mkdir()
    (folder / STAMP).write_text("of an older lock")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", stopped)
    with pytest.raises(KeyboardInterrupt):
        create(Toolchain("dev"))
    assert not (folder / STAMP).exists()


@pytest.mark.parametrize("value", ["", "some venvs"])
def test_environments_lie_at_a_whole_path(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step runs in a folder of its own, where a relative path leads elsewhere; an empty variable says nothing."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIFECYCLE_VENVS", value)
    wanted = tmp_path / value if value else ROOT / ".venvs"
    assert Toolchain("core").folder == wanted / "core"


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_VENVS", "/proc/none/venvs")
    with pytest.raises(UserError, match=r"/proc/none/venvs cannot be written.*set LIFECYCLE_VENVS"):
        create(Toolchain("dev"))
