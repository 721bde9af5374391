"""Where artifacts live, and the one way in which they become visible.

::

    runs/RECIPE/STAGE/<short id>/     a published artifact: its files and manifest.json
    runs/RECIPE/STAGE/latest          link to the artifact of the last run of the recipe
    runs/RECIPE/STAGE/.work/<id>/     a step at work, or interrupted and waiting to resume
    runs/RECIPE/quarantine/           what could not be explained: never reused, never deleted

An artifact is published by one rename, after everything in it was flushed to the disk,
and is never written again (its files are made read-only).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.runner.digests import sha256_file, sync_path, sync_tree
from pipeline.runner.identity import SHORT, digest_of
from pipeline.stages.step import write_json

MANIFEST = "manifest.json"


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

    def work_folder(self, stage: str, identity: str) -> Path:
        """Where the step of this identity works; may hold an interrupted attempt."""
        return self.root / stage / ".work" / identity[:SHORT]

    def server_record(self) -> Path:
        """The record of the recipe's running server (see :mod:`pipeline.serving`)."""
        return self.root / "deploy" / "server.json"

    def find(self, stage: str, identity: str) -> Artifact | None:
        """The published artifact of this identity, if there is one."""
        artifact = read_artifact(self.root / stage / identity[:SHORT])
        return artifact if artifact and artifact.identity == identity else None

    def latest(self, stage: str) -> Artifact | None:
        """The artifact of the recipe's last run of a stage, if any."""
        link = self.root / stage / "latest"
        return read_artifact(link.resolve()) if link.exists() else None

    def publish(self, stage: str, identity: str, manifest: dict[str, Any]) -> Artifact:
        """Make ``work/output`` the artifact of this identity, with its manifest.

        Adds the file digests and the output digest to the manifest.  Files first, then
        folders, then the rename, then the parent folder: after a crash at any point
        there is either the whole artifact or none.
        """
        work = self.work_folder(stage, identity)
        output = work / "output"
        files = file_table(output)
        manifest = {**manifest, "files": files, "output_digest": output_digest(files)}
        write_json(output / MANIFEST, manifest)
        for parent, _, names in os.walk(output):
            for name in names:
                path = Path(parent) / name
                if not path.is_symlink():
                    path.chmod(0o444)
        sync_tree(output)
        target = self.root / stage / identity[:SHORT]
        if target.exists():
            self.quarantine(target, "an unexplained folder stood where an artifact was to be published")
        output.rename(target)
        sync_path(target.parent)
        self.keep_record(work, target.name)
        self.point_latest(stage, identity)
        artifact = read_artifact(target)
        assert artifact is not None
        return artifact

    def keep_record(self, work: Path, name: str) -> None:
        """Keep a finished step's log and events; drop its checkpoints."""
        records = work.parent.parent / ".logs" / name
        records.mkdir(parents=True, exist_ok=True)
        for file in ("job.json", "log.txt", "events.jsonl"):
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

    def quarantine(self, path: Path, reason: str) -> Path:
        """Move what cannot be explained aside, with the reason beside it."""
        folder = self.root / "quarantine" / f"{time.strftime('%Y%m%d-%H%M%S')}-{time.time_ns() % 10**6:06d}"
        folder.mkdir(parents=True)
        target = folder / path.name
        path.rename(target)
        write_json(folder / "reason.json", {"was": str(path), "reason": reason})
        return target


def read_artifact(path: Path) -> Artifact | None:
    """The artifact in a folder, or None where there is no readable manifest."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return Artifact(path, manifest)


def file_table(folder: Path) -> dict[str, dict[str, Any]]:
    """SHA-256 and size of every file below a folder, by relative path, manifest excluded."""
    table = {}
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = file.relative_to(folder).as_posix()
        if name != MANIFEST:
            table[name] = {"sha256": sha256_file(file), "bytes": file.stat().st_size}
    return table


def output_digest(files: dict[str, dict[str, Any]]) -> str:
    """One digest of an artifact's content: names and file digests, nothing else."""
    return digest_of({name: entry["sha256"] for name, entry in files.items()})
