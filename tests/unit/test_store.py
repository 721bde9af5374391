"""The store: atomic publishing, immutability, damage, quarantine; events; digests."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import StepFailed
from pipeline.runner.attempt import (
    can_go_on,
    curves,
    end_torn_line,
    note_attempt,
    read_attempts,
    spent,
    take_up,
)
from pipeline.runner.digests import DigestMemory
from pipeline.runner.events import EventReader
from pipeline.runner.lease import Lease, LeaseLost, acquire
from pipeline.runner.store import Artifact, Store, damage, read_artifact
from pipeline.stages.seals import sha256_file, write_release, write_seal
from pipeline.stages.step import Step

IDENTITY = "ab" * 32
MADE_BY = {"machine": {"host": "h"}, "code": {"source_digest": "s"}, "toolchain": {"lock_digest": "l"}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path, "small")


def hold(store: Store, key: str = IDENTITY[:12]) -> Lease:
    return acquire(store.stage_folder("train"), key, "small/train", lease_s=5, tell=print)


def publish(store: Store, text: str = "content", identity: str = IDENTITY, **more: object) -> Artifact:
    held = hold(store, identity[:12])
    (held.folder / "output" / "model").mkdir(parents=True)
    (held.folder / "output" / "model" / "weights").write_text(text)
    (held.folder / "state").mkdir()
    (held.folder / "log.txt").write_text("log")
    try:
        return store.publish(held, "train", identity, {"identity": identity, "parents": {}, **more})
    finally:
        held.close()


def test_publish_makes_a_whole_read_only_artifact_and_drops_the_work(store: Store) -> None:
    assert store.find("train", IDENTITY) is None
    artifact = publish(store)
    assert artifact.path.name == IDENTITY[:12]
    assert not list((store.root / "train" / ".work").glob(f"{IDENTITY[:12]}*"))
    file = artifact.path / "model" / "weights"
    assert oct(file.stat().st_mode & 0o777) == "0o444"
    assert artifact.manifest["files"]["model/weights"]["sha256"] == sha256_file(file)
    assert store.find("train", IDENTITY).identity == IDENTITY
    assert store.latest("train").path == artifact.path
    assert (store.root / "train" / ".logs" / IDENTITY[:12] / "log.txt").read_text() == "log"


def test_equal_content_has_an_equal_output_digest_whatever_the_manifest_says(tmp_path: Path) -> None:
    digests = {publish(Store(tmp_path / place, "r"), note=place).output_digest for place in ("a", "b")}
    assert len(digests) == 1


def test_a_metric_that_is_not_a_number_is_not_published(store: Store) -> None:
    with pytest.raises(StepFailed, match=r"metrics.loss = nan is not a finite number"):
        publish(store, metrics={"loss": float("nan")})
    assert store.find("train", IDENTITY) is None
    assert store.artifacts("train") == []


def test_an_artifact_that_an_earlier_version_published_with_nan_is_not_whole(store: Store) -> None:
    artifact = publish(store, metrics={"loss": 1.5})
    manifest = artifact.path / "manifest.json"
    text = manifest.read_text().replace("1.5", "NaN")
    plain = json.loads(text)
    stated = plain.pop("manifest_digest")
    now = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    manifest.chmod(0o644)
    manifest.write_text(text.replace(stated, now))
    assert store.find("train", IDENTITY) is None
    assert damage(artifact.path) == [
        "manifest.json holds a figure that is not a number, such as the loss of a diverged training"
    ]


def test_an_unexplained_folder_goes_to_quarantine(store: Store) -> None:
    strange = store.root / "train" / IDENTITY[:12]
    strange.mkdir(parents=True)
    (strange / "half").write_text("x")
    artifact = publish(store)
    assert not (artifact.path / "half").exists()
    kept = list((store.root / "quarantine").glob("*/*/half"))
    assert len(kept) == 1
    assert "manifest.json is missing" in (kept[0].parent.parent / "reason.json").read_text()


def test_a_published_artifact_is_never_replaced(store: Store) -> None:
    before = publish(store, "first")
    after = publish(store, "second")
    assert after.manifest == before.manifest
    assert (after.path / "model" / "weights").read_text() == "first"


def test_every_flipped_bit_is_found_by_file(store: Store) -> None:
    artifact = publish(store)
    for file in (artifact.path / "model" / "weights", artifact.path / "manifest.json"):
        whole = file.read_bytes()
        file.chmod(0o644)
        for place in range(len(whole)):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            faults = damage(artifact.path, deep=True)
            assert faults, f"{file.name}, byte {place}"
            assert file.name in faults[0]
        file.write_bytes(whole)
    assert not damage(artifact.path, deep=True)


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda path: (path / "model" / "weights").unlink(), "weights is missing"),
        (lambda path: os.truncate(path / "model" / "weights", 0), "weights has 0 bytes, 7 were published"),
        (lambda path: os.truncate(path / "manifest.json", 40), "manifest.json is not what was published"),
        (lambda path: os.truncate(path / "manifest.json", 0), "manifest.json is not what was published"),
        (lambda path: (path / "manifest.json").unlink(), "manifest.json is missing"),
    ],
)
def test_a_damaged_artifact_is_not_found_and_says_why(store: Store, harm: object, words: str) -> None:
    artifact = publish(store)
    harm(artifact.path)  # type: ignore[operator]
    assert store.find("train", IDENTITY) is None
    assert words in damage(artifact.path)[0]


def test_a_manifest_that_cannot_be_read_is_not_taken_for_absent(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = publish(store)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied", "manifest.json")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(PermissionError):
        store.find("train", IDENTITY)
    assert damage(artifact.path) == ["manifest.json cannot be read: Permission denied"]


def test_an_added_file_is_damage_too(store: Store) -> None:
    artifact = publish(store)
    (artifact.path / "extra").write_text("x")
    assert damage(artifact.path, deep=True) == ["extra was added after publishing"]


def test_a_short_id_shared_by_two_identities_is_not_mistaken(store: Store) -> None:
    publish(store)
    assert store.find("train", IDENTITY[:12] + "0" * 52) is None


def test_who_lost_the_lease_cannot_publish(store: Store) -> None:
    held = hold(store)
    (held.folder / "output").mkdir()
    (held.folder / "output" / "weights").write_text("late")
    held.folder.rename(held.folder.with_name(f"{IDENTITY[:12]}.{held.epoch + 1}"))
    with pytest.raises(LeaseLost, match="took train over"):
        store.publish(held, "train", IDENTITY, {"identity": IDENTITY, "parents": {}})
    assert read_artifact(store.place("train", IDENTITY)) is None
    held.close()


# ------------------------------------------------------------------ interrupted work


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name in ("checkpoints/step_1", "checkpoints/step_2", "half"):
        (tmp_path / "state" / name).mkdir(parents=True)
        (tmp_path / "state" / name / "weights").write_text(name)
    for name in ("checkpoints/step_1", "checkpoints/step_2"):
        write_seal(tmp_path, tmp_path / "state" / name)
    (tmp_path / "state" / "checkpoints" / "LATEST").symlink_to("step_2")
    note_attempt(tmp_path, MADE_BY)
    return tmp_path


def left(
    work: Path, strict: bool = False, made_by: object = MADE_BY
) -> tuple[set[str], list[str], list[str]]:
    """What is left in state, what was told, what went to quarantine."""
    told: list[str] = []
    aside: list[str] = []

    def quarantine(path: Path, reason: str) -> None:
        aside.append(f"{path.name}: {reason}")
        path.rename(work / f"aside-{len(aside)}")

    take_up(work, made_by, strict, quarantine, told.append)  # type: ignore[arg-type]
    state = work / "state"
    return {p.relative_to(state).as_posix() for p in state.rglob("*") if not p.is_dir()}, told, aside


def test_sealed_work_is_kept_and_the_rest_dropped(work: Path) -> None:
    kept, told, aside = left(work)
    # "checkpoints/LATEST" leads to a folder, so it is no file of the listing.
    assert kept == {"checkpoints/step_1/weights", "checkpoints/step_2/weights"}
    assert (work / "state" / "checkpoints" / "LATEST").resolve().name == "step_2"
    assert not told
    assert not aside
    assert "goes on" in str(can_go_on(work))


def test_changed_bytes_go_to_quarantine_with_the_reason(work: Path) -> None:
    (work / "state" / "checkpoints" / "step_2" / "weights").write_text("rotten")
    kept, told, aside = left(work)
    assert kept == {"checkpoints/step_1/weights"}
    assert "weights differs" in aside[0]
    assert "damaged" in told[0]
    assert not (work / "state" / "checkpoints" / "LATEST").is_symlink()


def test_a_half_removed_piece_is_dropped(work: Path) -> None:
    (work / "state" / "checkpoints" / "step_1" / "weights").unlink()
    kept, told, aside = left(work)
    assert kept == {"checkpoints/step_2/weights"}
    assert "not whole" in told[0]
    assert not aside


def test_a_torn_seal_seals_nothing(work: Path) -> None:
    seals = work / "seals.jsonl"
    seals.write_text(seals.read_text()[:-20])
    assert left(work)[0] == {"checkpoints/step_1/weights"}


def test_changed_code_is_told_and_counts_under_strict(work: Path) -> None:
    other = {**MADE_BY, "code": {"source_digest": "t"}}
    kept, told, aside = left(work, made_by=other)
    assert kept
    assert told == ["code changed since the interrupted attempt; it goes on all the same"]
    assert not aside
    kept, told, aside = left(work, strict=True, made_by=other)
    assert not kept
    assert "--strict: code changed since" in aside[0]


def test_attempts_survive_a_torn_line(work: Path) -> None:
    with open(work / "attempts.jsonl", "a") as handle:
        handle.write('{"started": "2')
    note_attempt(work, MADE_BY)
    assert len(read_attempts(work)) == 2


# ------------------------------------------------------------------ events and digests


def step_in(folder: Path) -> Step:
    return Step("train", "pipeline.stages.train", "r", IDENTITY, {}, {}, None, folder, 1)


def test_events_survive_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    step = step_in(tmp_path)
    step.message("one")
    with open(path, "a") as handle:
        handle.write('{"kind": "mess')
    reader = EventReader(path)
    assert [event["text"] for event in reader.new_events()] == ["one"]
    end_torn_line(path)
    step.message("two")
    assert [event["text"] for event in reader.new_events()] == ["two"]


def test_curves_count_the_later_report_of_a_step_and_stay_small(tmp_path: Path) -> None:
    step = step_in(tmp_path)
    for place in (*range(1, 900), *range(500, 1001)):
        step.metric(place, loss=float(place))
    found = curves(tmp_path)["loss"]
    assert len(found) <= 301
    assert found[-1] == [1000, 1000.0]
    assert [place for place, _ in found] == sorted({place for place, _ in found})


def test_digests_are_remembered_until_the_file_changes(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("a")
    os.utime(file, (time.time() - 60, time.time() - 60))
    memory = DigestMemory(tmp_path / "memory.json")
    first = memory.digest(file)
    memory.save()
    kept = json.loads((tmp_path / "memory.json").read_text())["files"]
    assert kept[str(file)][3] == first
    file.write_text("b!")
    assert DigestMemory(tmp_path / "memory.json").digest(file) == sha256_file(file) != first


def test_a_damaged_memory_is_not_believed(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("a")
    os.utime(file, (time.time() - 60, time.time() - 60))
    memory = DigestMemory(tmp_path / "memory.json")
    right = memory.digest(file)
    memory.save()
    text = (tmp_path / "memory.json").read_text()
    for harm in ("{torn", "[]", text.replace(right[:8], "0" * 8)):
        (tmp_path / "memory.json").write_text(harm)
        assert DigestMemory(tmp_path / "memory.json").digest(file) == right


def test_a_file_that_has_just_changed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("a")
    memory = DigestMemory(tmp_path / "memory.json")
    stat = file.stat()
    first = memory.digest(file)
    file.write_text("b")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same size, tick and inode
    assert memory.digest(file) != first


def test_verify_reads_again_what_the_memory_would_vouch_for(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_text("a")
    old = time.time_ns() - 60 * 10**9
    os.utime(file, ns=(old, old))
    memory = DigestMemory(tmp_path / "memory.json")
    first = memory.digest(file)
    memory.save()
    file.write_text("b")
    os.utime(file, ns=(old, old))
    assert DigestMemory(tmp_path / "memory.json").digest(file) == first
    assert DigestMemory(tmp_path / "memory.json", reread=True).digest(file) != first


def test_released_files_go_and_their_pieces_stay_sound(work: Path) -> None:
    for name in ("step_1", "step_2"):
        (work / "state" / "checkpoints" / name / "more").write_text("more")
        write_seal(work, work / "state" / "checkpoints" / name)
    write_release(work, [work / "state" / "checkpoints" / "step_1" / "weights"])
    assert not (work / "state" / "checkpoints" / "step_1" / "weights").exists()
    # Killed after the release was put on record and before the file was removed.
    (work / "state" / "checkpoints" / "step_1" / "weights").write_text("checkpoints/step_1")
    kept, told, aside = left(work)
    assert kept == {"checkpoints/step_1/more", "checkpoints/step_2/more", "checkpoints/step_2/weights"}
    assert not told
    assert not aside
    assert left(work)[0] == kept  # and once more, from the seals that were rewritten
    with pytest.raises(ValueError, match="no sealed piece"):
        write_release(work, [work / "state" / "half" / "weights"])


def test_time_and_memory_of_all_attempts_count(tmp_path: Path) -> None:
    """The time of the last attempt alone stood in manifest and report: 1 s of a step that was killed after minutes."""
    events = tmp_path / "events.jsonl"

    def say(at: float, memory_gb: float) -> None:
        with open(events, "a") as file:
            line = {
                "time": at,
                "kind": "progress",
                "done": 1,
                "total": 9,
                "unit": "steps",
                "memory_gb": memory_gb,
            }
            file.write(json.dumps(line) + "\n")

    def attempt() -> float:
        note_attempt(tmp_path, MADE_BY)
        return float(read_attempts(tmp_path)[-1]["time"])

    first = attempt()
    assert spent(tmp_path) == (0.0, 0.0)
    say(first + 10, 1.5)
    say(first + 100, 3.5)
    with open(events, "a") as file:
        file.write('{"time": 1e12, "kind": "prog')  # it was killed while it wrote
    second = attempt()
    end_torn_line(events)
    say(second + 40, 2.0)
    assert spent(tmp_path) == (pytest.approx(100), 3.5)
    attempt()
    say(second + 9999, 99.0)  # of the last attempt the controller knows more
    assert spent(tmp_path) == (pytest.approx(140), 3.5)


def deep(levels: int) -> Any:
    found: Any = {}
    for _ in range(levels):
        found = {"a": found}
    return found


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": deep(300)},
        {"files": [1]},
        {"files": {"weights": 5}},
        {"files": {"../../outside": {"bytes": 1, "sha256": "x"}}},
        {"files": {"/etc/passwd": {"bytes": 1, "sha256": "x"}}},
        {"files": {"weights": {"bytes": "1", "sha256": "x"}}},
        {"identity": 5},
        {"parts": "x"},
        {"attempts": None},
        {"seconds": "long"},
    ],
    ids=str,
)
def test_a_manifest_of_another_form_is_no_artifact_even_under_its_own_digest(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    whole = {"identity": "a" * 64, "output_digest": "b" * 64, "files": {}, **change}
    text = json.dumps(
        {**whole, "manifest_digest": hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()}
    )
    (tmp_path / "manifest.json").write_text(text)
    assert read_artifact(tmp_path) is None
    assert damage(tmp_path, deep=True) == ["manifest.json is not what was published"]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "[" * 500 + "]" * 500, "null", "5", '"x"']
)
def test_a_deep_manifest_is_told_and_not_a_traceback(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert read_artifact(tmp_path) is None
    assert damage(tmp_path) == ["manifest.json is not what was published"]


def test_an_absurdly_large_manifest_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    os.truncate(tmp_path / "manifest.json", 10**12)
    assert read_artifact(tmp_path) is None
    assert damage(tmp_path) == ["manifest.json has more than 67,108,864 bytes, which no step's has"]
