"""Artifacts that rot: flipped bits, truncated manifests, emptied and deleted files."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.record.check import check, set_aside
from pipeline.runner.store import Store
from tests.faults.conftest import FULL
from tests.faults.harness import TALLY, TRACEBACK, Light

CONSUMER = {"curate": "train", "train": "export"}


def flip(file: Path) -> None:
    """Flip one bit somewhere in the file, leaving size and times as they were."""
    stat = file.stat()
    content = bytearray(file.read_bytes())
    place = random.randrange(len(content))
    content[place] ^= 1 << random.randrange(8)
    file.chmod(0o644)
    file.write_bytes(bytes(content))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncate(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def empty(file: Path) -> None:
    file.chmod(0o644)
    file.write_bytes(b"")


def delete(file: Path) -> None:
    file.unlink()


@pytest.fixture
def done(light: Light, whole: dict[str, Any]) -> Light:
    status, output = light()
    assert status == 0, output
    return light


def verify(light: Light) -> dict[str, list[str]]:
    """Stage to faults, of the artifacts that ``lifecycle verify`` finds damaged."""
    found = check(Store(light.runs, "light"), lambda _: None)
    return {each.path.parent.name: each.faults for each in found if each.faults}


@pytest.mark.parametrize(
    ("harm", "kind"),
    [
        (flip, "flipped bit"),
        (truncate, "truncated file"),
        (empty, "emptied file"),
        (delete, "deleted file"),
    ],
)
def test_harm_to_every_file_is_found_and_mended(
    harm: Callable[[Path], None], kind: str, done: Light, whole: dict[str, Any]
) -> None:
    files = [
        file
        for stage in whole
        for file in sorted((done.runs / "light" / stage / "latest").resolve().rglob("*"))
        if file.is_file() and (file.stat().st_size or harm is delete)
    ]
    assert len(files) >= 7
    for file in files * (4 if FULL and harm is flip else 1):
        stage = file.relative_to(done.runs / "light").parts[0]
        with TALLY.fault(f"{kind} in a published artifact"):
            before = shutil.copytree(done.runs, done.runs.with_name(f"{done.runs.name}-kept"), symlinks=True)
            harm(file)
            faults = verify(done)
            assert set(faults) == {stage}
            assert file.name in faults[stage][0]
            if stage in CONSUMER:
                consumer_refuses_or_mends(done, stage, file)
            set_aside(Store(done.runs, "light"), check(Store(done.runs, "light"), lambda _: None))
            done.must_end_as(whole)
            assert not verify(done)
            shutil.rmtree(done.runs)
            before.rename(done.runs)


def consumer_refuses_or_mends(light: Light, stage: str, file: Path) -> None:
    """A step that is about to rest on the file stops and names it, or has it made anew first."""
    shutil.rmtree((light.runs / "light" / CONSUMER[stage] / "latest").resolve())
    status, output = light()
    assert TRACEBACK not in output
    if status:
        assert status == 1
        assert f"which is not what {stage} published" in output
        assert file.name in output
    else:
        assert "its artifact is damaged" in output  # seen at a glance, so made anew
        assert light.quarantined()


def test_rot_that_no_glance_can_see_is_never_consumed(done: Light, whole: dict[str, Any]) -> None:
    with TALLY.fault("flipped bit in a published artifact"):
        flip((done.runs / "light" / "curate" / "latest").resolve() / "data.jsonl")
        status, output = done("--seed=7")
        assert status == 1, output
        assert "data.jsonl is not what was published (its bytes changed)" in output
        assert "lifecycle verify light --quarantine" in output
        assert len(list((done.runs / "light" / "train").glob("[0-9a-f]*"))) == 1
