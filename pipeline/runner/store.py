"""Where artifacts live, and the one way in which they become visible.

::

    runs/RECIPE/STAGE/<short id>/          a published artifact: its files and manifest.json
    runs/RECIPE/STAGE/latest               link to the artifact of the last run of the recipe
    runs/RECIPE/STAGE/.work/<id>.<epoch>/  a step at work, or interrupted (runner/lease.py)
    runs/RECIPE/STAGE/.logs/<short id>/    log and events of the step that made an artifact
    runs/RECIPE/tracking/                  files of the trackers that the recipe asks for
    runs/RECIPE/quarantine/                what could not be explained: never reused, never deleted

An artifact is published by one rename, after everything in it was flushed to the disk,
and is never written again (its files are made read-only).  Its manifest holds the digest
of every file and one of itself.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.errors import LifecycleError, StepFailed
from pipeline.runner.identity import SHORT, digest_of
from pipeline.runner.lease import Lease
from pipeline.stages.seals import entries, sha256_file, sync_path, sync_tree
from pipeline.stages.step import write_json

MANIFEST = "manifest.json"
QUARANTINE = "quarantine"
FORMAT = 2
LARGEST_MANIFEST = 64 << 20  # bytes; a file's entry has 150, a curve is thinned
RECORDS = ("job.json", "log.txt", "events.jsonl", "attempts.jsonl")  # kept of a finished step's work


@dataclass(frozen=True)
class Artifact:
    """A published artifact and its manifest."""

    path: Path
    manifest: dict[str, Any]

    @property
    def identity(self) -> str:
        return str(self.manifest["identity"])

    @property
    def output_digest(self) -> str:
        return str(self.manifest["output_digest"])


class Store:
    """The artifacts of one recipe under ``runs/RECIPE``."""

    def __init__(self, runs: Path, recipe: str) -> None:
        self.root = runs / recipe
        self.recipe = recipe

    def stage_folder(self, stage: str) -> Path:
        return self.root / stage

    def tracking_folder(self) -> Path:
        """Where TensorBoard and Weights & Biases keep their files (see :mod:`pipeline.tracking`)."""
        return self.root / "tracking"

    def server_record(self) -> Path:
        """The record of the recipe's running server (see :mod:`pipeline.serving`)."""
        return self.root / "deploy" / "server.json"

    def place(self, stage: str, identity: str) -> Path:
        """Where the artifact of this identity is, or would be."""
        return self.root / stage / identity[:SHORT]

    def find(self, stage: str, identity: str) -> Artifact | None:
        """The published artifact of this identity, whole at a glance; None where there is none."""
        artifact = read_artifact(self.place(stage, identity))
        return artifact if artifact and artifact.identity == identity and not damage(artifact.path) else None

    def latest(self, stage: str) -> Artifact | None:
        """The artifact of the recipe's last run of a stage, if its manifest can be read."""
        link = self.root / stage / "latest"
        return read_artifact(link.resolve()) if link.exists() else None

    def artifacts(self, stage: str) -> list[Path]:
        """The folders of all published artifacts of a stage, damaged ones included."""
        folder = self.root / stage
        if not folder.is_dir():
            return []
        return sorted(
            path
            for path in folder.iterdir()
            if len(path.name) == SHORT and path.is_dir() and not path.is_symlink()
        )

    def publish(self, held: Lease, stage: str, identity: str, manifest: dict[str, Any]) -> Artifact:
        """Make the lease's ``output/`` the artifact of this identity, with its manifest.

        Adds the file digests, the output digest and the manifest's own digest.  Files
        first, then folders, then the rename, then the folders that it changed: after a
        crash at any point there is either the whole artifact or none.  Raises
        :class:`pipeline.runner.lease.LeaseLost` when another controller took over: the
        rename starts from the lease's folder, which is then no longer there.
        """
        output = held.folder / "output"
        try:
            files = file_table(output)
            whole = {**manifest, "format": FORMAT, "files": files, "output_digest": output_digest(files)}
            try:
                write_json(output / MANIFEST, {**whole, "manifest_digest": manifest_digest(whole)})
            except strict_json.NotFinite as error:
                raise StepFailed(f"{stage} cannot be published: {error}") from None
            for parent, _, names in os.walk(output):
                for name in names:
                    path = Path(parent) / name
                    if not path.is_symlink():
                        path.chmod(0o444)
            held.require()  # a folder that vanished under os.walk would look empty
            sync_tree(output)
            target = self._move_in(output, stage, identity)
        except FileNotFoundError:
            held.require()
            raise
        sync_path(target.parent)
        self.point_latest(stage, identity)
        # It is published; who took the rest of the folder over meanwhile clears it away.
        with contextlib.suppress(FileNotFoundError):
            sync_path(held.folder)
            self.keep_record(held.folder, target.name)
        artifact = read_artifact(target)
        assert artifact is not None
        return artifact

    def _move_in(self, output: Path, stage: str, identity: str) -> Path:
        target = self.place(stage, identity)
        while True:
            try:
                output.rename(target)
                return target
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
            faults = damage(target, deep=True)
            if faults:
                self.quarantine(target, f"stood where an artifact was to be published: {faults[0]}")
                continue
            if read_artifact(target).identity == identity:  # type: ignore[union-attr]
                return target  # the same artifact, published meanwhile; an artifact is never replaced
            raise LifecycleError(
                f"{target} holds another identity with the same first {SHORT} characters as {identity}; "
                "keep the two recipes' runs in two folders (--runs)"
            )

    def keep_record(self, work: Path, name: str) -> None:
        """Keep a finished step's log and events; drop its checkpoints."""
        records = work.parent.parent / ".logs" / name
        records.mkdir(parents=True, exist_ok=True)
        for file in RECORDS:
            if (work / file).exists():
                os.replace(work / file, records / file)
        shutil.rmtree(work)

    def point_latest(self, stage: str, identity: str) -> None:
        """Swap the ``latest`` link in one step."""
        link = self.root / stage / "latest"
        if link.is_symlink() and link.readlink().name == identity[:SHORT]:
            return
        part = self.root / stage / f".latest-{os.getpid()}"
        part.unlink(missing_ok=True)
        part.symlink_to(identity[:SHORT])
        os.replace(part, link)
        sync_path(link.parent)

    def quarantine(self, path: Path, reason: str) -> Path:
        """Move what cannot be explained aside, with the reason beside it."""
        folder = (
            self.root
            / QUARANTINE
            / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}-{os.getpid()}"
        )
        folder.mkdir(parents=True)
        # The reason first: after a crash a reason without its folder explains itself.
        write_json(folder / "reason.json", {"was": str(path), "reason": reason})
        target = folder / path.name
        path.rename(target)
        return target


def read_artifact(path: Path) -> Artifact | None:
    """The artifact in a folder, or None where there is no manifest that matches its own digest.

    Raises ``OSError`` for one that is there and cannot be read: that is not absence, and
    must not lead to a new one being made in its place.
    """
    try:
        if (path / MANIFEST).stat().st_size > LARGEST_MANIFEST:
            return None
        text = (path / MANIFEST).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError):
        return None
    try:
        manifest = strict_json.loads(text)
        stated = manifest.pop("manifest_digest")
        if stated != manifest_digest(manifest) or not _formed(manifest):
            return None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
    return Artifact(path, manifest)


def _formed(manifest: dict[str, Any]) -> bool:
    """Whether what every reader takes for granted is of its kind: a digest that is right says nothing of who wrote it."""
    texts, files = ("identity", "output_digest"), manifest["files"]
    kinds: dict[str, type] = {
        **dict.fromkeys(("recipe", "stage", "headline", "started", *texts), str),
        **dict.fromkeys(("parts", "parents", "inputs", "metrics", "curves", "made_by"), dict),
        **dict.fromkeys(("messages", "warnings", "attempts"), list),
    }
    return (
        all(isinstance(manifest[name], str) for name in texts)
        and all(isinstance(manifest.get(name, kind()), kind) for name, kind in kinds.items())
        and all(isinstance(manifest.get(name, 0), int | float) for name in ("seconds", "peak_memory_gb"))
        and isinstance(files, dict)
        and all(_inside(name) and _entry(entry) for name, entry in files.items())
    )


def _inside(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/")


def _entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("bytes"), int)
        and isinstance(entry.get("sha256"), str)
    )


def damage(path: Path, deep: bool = False) -> list[str]:
    """What is wrong with the artifact in a folder, by file; empty where it is whole.

    At a glance: the manifest against its own digest, every file's presence and size.
    ``deep`` reads every byte and finds files that do not belong.
    """
    try:
        artifact = read_artifact(path)
    except OSError as error:
        return [f"{MANIFEST} cannot be read: {error.strerror}"]
    if artifact is None:
        return [_manifest_fault(path / MANIFEST)]
    files = artifact.manifest["files"]
    found = []
    for name, entry in files.items():
        try:
            size = (path / name).stat().st_size
            if size != entry["bytes"]:
                found.append(f"{name} has {size:,} bytes, {entry['bytes']:,} were published")
            elif deep and sha256_file(path / name) != entry["sha256"]:
                found.append(f"{name} is not what was published (its bytes changed)")
        except FileNotFoundError:
            found.append(f"{name} is missing")
        except OSError as error:
            found.append(f"{name} cannot be read: {error.strerror}")
    if deep:
        found += [f"{name} was added after publishing" for name in file_names(path) if name not in files]
    return found


def _manifest_fault(manifest: Path) -> str:
    if not manifest.exists():
        return f"{MANIFEST} is missing"
    if manifest.stat().st_size > LARGEST_MANIFEST:
        return f"{MANIFEST} has more than {LARGEST_MANIFEST:,} bytes, which no step's has"
    try:
        strict_json.loads(manifest.read_bytes())
    except strict_json.NotFinite:
        return f"{MANIFEST} holds a figure that is not a number, such as the loss of a diverged training"
    except ValueError:
        pass
    return f"{MANIFEST} is not what was published"


def file_names(folder: Path) -> list[str]:
    """Relative paths of the files of an artifact's folder, manifest excluded, in order."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in names if name != MANIFEST)


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below a folder, by relative path, manifest excluded."""
    names = file_names(folder)
    return dict(zip(names, entries([folder / name for name in names]), strict=True))


def manifest_digest(manifest: dict[str, Any]) -> str:
    """Digest of a manifest without this digest, as it is once written and read."""
    text = strict_json.dumps(json.loads(strict_json.dumps(manifest)), sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def output_digest(files: dict[str, dict[str, Any]]) -> str:
    """One digest of an artifact's content: names and file digests, nothing else."""
    return digest_of({name: entry["sha256"] for name, entry in files.items()})
