"""The store: atomic publishing, immutability, quarantine; the lease; events; digests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import LifecycleError
from pipeline.runner.digests import DigestMemory, sha256_file
from pipeline.runner.events import EventReader
from pipeline.runner.execute import _end_torn_line
from pipeline.runner.lease import lease
from pipeline.runner.store import Store, read_artifact
from pipeline.stages.step import Step

IDENTITY = "ab" * 32


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, "small")


def worked(store: Store, text: str = "content") -> Path:
    work = store.work_folder("train", IDENTITY)
    (work / "output" / "model").mkdir(parents=True)
    (work / "output" / "model" / "weights").write_text(text)
    (work / "state").mkdir()
    (work / "log.txt").write_text("log")
    return work


def test_publish_makes_a_whole_read_only_artifact_and_drops_the_work(store: Store) -> None:
    work = worked(store)
    assert store.find("train", IDENTITY) is None
    artifact = store.publish("train", IDENTITY, {"identity": IDENTITY})
    assert artifact.path.name == IDENTITY[:12]
    assert not work.exists()
    file = artifact.path / "model" / "weights"
    assert oct(file.stat().st_mode & 0o777) == "0o444"
    assert artifact.manifest["files"]["model/weights"]["sha256"] == sha256_file(file)
    assert store.find("train", IDENTITY).identity == IDENTITY
    assert store.latest("train").path == artifact.path
    assert (store.root / "train" / ".logs" / IDENTITY[:12] / "log.txt").read_text() == "log"


def test_equal_content_has_an_equal_output_digest_whatever_the_manifest_says(tmp_path: Path) -> None:
    digests = set()
    for place, note in (("a", 1), ("b", 2)):
        store = Store(tmp_path / place, "r")
        worked(store)
        digests.add(store.publish("train", IDENTITY, {"identity": IDENTITY, "note": note}).output_digest)
    assert len(digests) == 1


def test_an_unexplained_folder_goes_to_quarantine(store: Store) -> None:
    strange = store.root / "train" / IDENTITY[:12]
    strange.mkdir(parents=True)
    (strange / "half").write_text("x")
    worked(store)
    artifact = store.publish("train", IDENTITY, {"identity": IDENTITY})
    assert not (artifact.path / "half").exists()
    kept = list((store.root / "quarantine").glob("*/*/half"))
    assert len(kept) == 1
    assert "unexplained" in (kept[0].parent.parent / "reason.json").read_text()


def test_half_an_artifact_is_never_found(store: Store) -> None:
    folder = store.root / "train" / IDENTITY[:12]
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"identity": "')
    assert store.find("train", IDENTITY) is None
    assert read_artifact(folder) is None


def test_a_short_id_shared_by_two_identities_is_not_mistaken(store: Store) -> None:
    worked(store)
    store.publish("train", IDENTITY, {"identity": IDENTITY})
    assert store.find("train", IDENTITY[:12] + "0" * 52) is None


def test_the_lease_is_held_by_one_process_and_dies_with_it(tmp_path: Path) -> None:
    code = "import sys, time; from pathlib import Path; from pipeline.runner.lease import lease\n"
    code += "with lease(Path(sys.argv[1]), 'x'):\n    print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(LifecycleError, match=f"being run by process {holder.pid}"),
        lease(tmp_path, "small/train"),
    ):
        pass
    holder.kill()
    holder.wait()
    with lease(tmp_path, "small/train"):
        assert json.loads((tmp_path / ".lease").read_text())["pid"] == os.getpid()


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    step = Step("train", "r", IDENTITY, {}, {}, None, tmp_path, 1)
    step.message("one")
    with open(path, "a") as handle:
        handle.write('{"kind": "mess')
    reader = EventReader(path)
    assert [event["text"] for event in reader.new_events()] == ["one"]
    _end_torn_line(path)
    step.message("two")
    assert [event["text"] for event in reader.new_events()] == ["two"]


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("a")
    memory = DigestMemory(tmp_path / "memory.json")
    first = memory.digest(file)
    memory.save()
    again = DigestMemory(tmp_path / "memory.json")
    assert again.digest(file) == first
    file.write_text("b!")
    assert again.digest(file) == sha256_file(file) != first
    (tmp_path / "memory.json").write_text("{torn")
    assert DigestMemory(tmp_path / "memory.json").digest(file) == sha256_file(file)
