"""Toolchains: complete locks, no work when ready, and pip's failures in plain words."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pipeline import locks, toolchains
from pipeline.errors import LifecycleError, UserError
from pipeline.toolchains import (
    CUDA,
    FROM_SOURCE,
    NAMES,
    ROOT,
    SHARED,
    STAMP,
    Toolchain,
    create,
    failure_advice,
    name_of,
    pins,
)

LOCKS = (*NAMES, *SHARED)


@pytest.mark.parametrize("name", LOCKS)
def test_locks_pin_every_wanted_package_exactly(name: str) -> None:
    lock = Toolchain(name).lock
    text = re.sub(r" \\\n", "", lock.read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[^\s+]+(\s+--hash=sha256:[0-9a-f]{64})+", line)
    pinned = {name_of(package) for package in pins(lock)}
    assert len(pinned) == len(lines)
    for line in lock.with_suffix(".in").read_text().splitlines():
        wanted = re.match(r"[A-Za-z0-9._-]+", line)
        if wanted and not line.startswith("-") and name != CUDA:
            assert name_of(wanted.group(0)) in pinned


def test_every_official_build_of_torch_is_in_every_lock_that_has_torch() -> None:
    builds = (ROOT / "configs" / "toolchains" / toolchains.BUILDS).read_text()
    digests = re.findall(r"^[0-9a-f]{64}", builds, re.MULTILINE)
    version = pins(Toolchain("core").lock)["torch"]
    with_torch = {name: pins(Toolchain(name).lock) for name in NAMES if "torch" in pins(Toolchain(name).lock)}
    # Where PyPI's own build was locked with what it wants, there is no choice.
    found = [name for name, held in with_torch.items() if "nvidia-cublas" not in held]
    assert {"core", "serving", "nemo"} <= set(found)
    assert {with_torch[name]["torch"] for name in found} == {version}
    assert f"torch=={version}\n" in Toolchain(CUDA).lock.with_suffix(".in").read_text()
    for name in found:
        (entry,) = re.findall(
            r"^torch==.*?(?=^\S)", Toolchain(name).lock.read_text(), re.DOTALL | re.MULTILINE
        )
        assert all(digest in entry for digest in digests), name
        assert entry.count("sha256:") == len(digests) + 2, "and PyPI's own, for both processors"
    assert f"torch-{version}+cpu" in builds


@pytest.mark.parametrize(
    ("wheel", "does"),
    [
        ("rich-15.0.0-py3-none-any.whl", True),
        ("six-1.17.0-py2.py3-none-any.whl", True),
        ("multiprocess-0.70.19-py311-none-any.whl", True),
        ("numpy-2.3.5-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        ("numpy-2.3.5-cp311-cp311-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl", True),
        ("cryptography-50.0.2-cp38-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl", True),
        ("torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl", True),
        ("x-1-cp310.cp311-cp310.cp311-manylinux1_x86_64.whl", True),
        ("numpy-2.3.5-cp312-cp312-manylinux_2_27_x86_64.whl", False),
        ("cryptography-50.0.2-cp312-abi3-manylinux_2_28_x86_64.whl", False),
        ("multiprocess-0.70.19-py312-none-any.whl", False),
        ("numpy-2.3.5-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("numpy-2.3.5-cp311-cp311-win_amd64.whl", False),
        ("numpy-2.3.5-cp311-cp311-macosx_14_0_arm64.whl", False),
        ("numpy-2.3.5-pp311-pypy311_pp73-manylinux_2_28_x86_64.whl", False),
        ("six-1-py2-none-any.whl", False),
    ],
)
def test_a_lock_has_the_files_of_this_python_on_linux(wheel: str, does: bool) -> None:
    assert locks.fits(wheel) == does


def test_a_lock_names_sources_only_where_there_is_no_wheel() -> None:
    def file(name: str, digest: str) -> dict[str, Any]:
        return {"url": f"https://files.example.com/{name}", "hashes": {"sha256": digest * 64}}

    found = {
        "packages": [
            {
                "name": "rich",
                "wheels": [file("rich-1-py3-none-any.whl", "a")],
                "sdist": file("rich-1.tar.gz", "b"),
            },
            {"name": "jieba", "sdist": file("jieba-1.tar.gz", "c")},
            {"name": "torch", "wheels": [file("torch-2-cp311-cp311-manylinux_2_28_x86_64.whl", "d")]},
        ]
    }
    builds = f"# others\n{'e' * 64}  torch-2+cpu-cp311-cp311-manylinux_2_28_x86_64.whl\n"
    text = locks.lock_text(["jieba==1", "Rich==1", "torch==2"], found, builds)
    wheels, _, sources = text.partition(FROM_SOURCE)
    assert re.findall(r"^(\S+)==|sha256:(.)", wheels, re.MULTILINE) == [
        ("Rich", ""), ("", "a"), ("torch", ""), ("", "d"), ("", "e"),
    ]  # fmt: skip
    assert re.findall(r"^(\S+)==|sha256:(.)", sources, re.MULTILINE) == [("jieba", ""), ("", "c")]
    with pytest.raises(LifecycleError, match="no file of other==1"):
        locks.lock_text(["other==1"], found, "")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl"], "2.13.0+cpu"),
        (["torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl"], "2.13.0"),
        (["torch-2.13.0-py3-none-any.whl", "torch-2.13.0+cpu-py3-none-any.whl"], "2.13.0+cpu"),
        (["torch-2.13.0-py3-none-any.whl", "torch-2.13.0+mine-py3-none-any.whl"], "2.13.0"),
    ],
)
def test_the_cpu_build_of_torch_is_taken_where_pip_has_it(
    offered: list[str], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What pip itself would not do once hashes are asked for; a build that is not official is no choice."""
    for name in offered:
        (tmp_path / name).touch()
    for name, value in {"PIP_FIND_LINKS": str(tmp_path), "PIP_NO_INDEX": "1"}.items():
        monkeypatch.setenv(name, value)
    toolchain = Toolchain("core")
    monkeypatch.setattr(Toolchain, "python", Path(sys.executable))
    text = toolchain.lock.read_text()
    made = toolchains._with_build(text, toolchain)
    assert re.findall(r"^torch==(\S+)", made, re.MULTILINE) == [chosen]
    assert made.replace(f"torch=={chosen} ", "torch==2.13.0 ") == text  # the hashes stay


@pytest.mark.parametrize("tampered", [False, True])
def test_a_file_that_the_lock_does_not_name_is_refused(
    tampered: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the same name and version from another place, as dependency confusion has it."""
    offered = tmp_path / "offered"
    offered.mkdir()
    wheel = offered / "innocent-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("innocent.py", "")
        archive.writestr(
            "innocent-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: innocent\nVersion: 1.0\n"
        )
        archive.writestr("innocent-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("innocent-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if tampered:
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.writestr("evil.py", "")
    (tmp_path / "configs" / "toolchains").mkdir(parents=True)
    lock = tmp_path / "configs" / "toolchains" / "dev.lock"
    lock.write_text(f"innocent==1.0 \\\n    --hash=sha256:{digest}\n")
    for name, value in {
        "LIFECYCLE_VENVS": tmp_path / "a venv",
        "PIP_FIND_LINKS": offered,
        "PIP_NO_INDEX": "1",
    }.items():
        monkeypatch.setenv(name, str(value))
    if tampered:
        with pytest.raises(
            LifecycleError, match=r"innocent==1.0: the file that was offered is not one that the lock names"
        ):
            create(Toolchain("dev", tmp_path))
        assert not Toolchain("dev", tmp_path).ready()
    else:
        create(Toolchain("dev", tmp_path))
        assert Toolchain("dev", tmp_path).ready()
        assert (Toolchain("dev", tmp_path).site_packages() / "innocent.py").exists()


def test_nothing_is_done_when_the_stamp_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIFECYCLE_VENVS", str(tmp_path))
    monkeypatch.setattr(toolchains, "call", lambda *_, **__: pytest.fail("pip was called"))
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
    (tmp_path / "configs" / "toolchains" / "dev.lock").write_text(
        f"no-such-package-of-this-name==1.0 --hash=sha256:{'0' * 64}\n"
    )
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
