"""What no recipe's latest chain needs any more, and taking it away.

Needed is: what a ``latest`` link leads to and everything it rests on (of a stage whose link is
broken or leads to what cannot be read, all that is whole), what a live server serves, and what
a step at work reads.  A server or a step on another machine that shares
the disk counts as live, since from here nothing proves the contrary.  Interrupted work
and quarantine are only touched when asked for by name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.record.history import ORDER, history, recipes_in
from pipeline.runner.lease import attempts, live_holder
from pipeline.runner.store import QUARANTINE, Artifact, Store, read_artifact
from pipeline.serving import service

TRASH = ".trash-"


@dataclass(frozen=True)
class Unneeded:
    """A folder that nothing needs: what it is, and its size in bytes."""

    path: Path
    what: str
    bytes: int


def unneeded(runs: Path, interrupted: bool = False, quarantined: bool = False) -> list[Unneeded]:
    """Everything under ``runs`` that could go, in order."""
    keep = needed(runs)
    found = []
    for store in recipes_in(runs):
        for stage in ORDER:
            folder = store.stage_folder(stage)
            found += [_item(p, "artifact") for p in store.artifacts(stage) if p.resolve() not in keep]
            found += [_item(p, "half removed") for p in sorted(folder.glob(f"{TRASH}*"))]
            for work in attempts(folder):
                if live_holder(work):
                    continue
                finished = (folder / work.name.rpartition(".")[0]).is_dir()
                if finished or interrupted:
                    found.append(_item(work, "left of a finished step" if finished else "interrupted work"))
        if quarantined and (store.root / QUARANTINE).is_dir():
            found += [_item(path, "quarantine") for path in sorted((store.root / QUARANTINE).iterdir())]
    return found


def needed(runs: Path) -> set[Path]:
    """The folders of all artifacts that something rests on."""
    keep: set[Path] = set()
    for store in recipes_in(runs):
        for path in _roots(store):
            artifact = _readable(path)
            keep.add(path)
            if artifact:
                keep |= _rests_on(artifact, store)
    return keep


def remove(items: list[Unneeded], runs: Path) -> int:
    """Take the items away, but for what has come to be needed since; returns the bytes freed.

    Each is renamed out of sight first, so that no reader ever sees half of it.
    """
    keep = needed(runs)
    freed = 0
    for item in items:
        work = item.path.parent.name == ".work"
        if item.path.resolve() in keep or not item.path.exists() or (work and live_holder(item.path)):
            continue
        gone = item.path
        if not gone.name.startswith(TRASH):
            gone = item.path.parent / f"{TRASH}{os.getpid()}-{item.path.name}"
            try:
                item.path.rename(gone)
            except FileNotFoundError:
                continue  # a controller has just taken it up
        shutil.rmtree(gone)
        shutil.rmtree(item.path.parent / ".logs" / item.path.name, ignore_errors=True)
        freed += item.bytes
    return freed


def _roots(store: Store) -> Iterator[Path]:
    for stage in ORDER:
        folder = store.stage_folder(stage)
        latest = Path(os.path.realpath(folder / "latest"))  # also of a link to itself
        yield latest
        if _readable(latest) is None:  # nobody knows which it was, and there may be one alone
            yield from (path.resolve() for path in store.artifacts(stage) if _readable(path))
        for work in attempts(folder):
            if live_holder(work):
                yield from _read_by(work)
    record = service.read(store.server_record())
    if record is not None:
        yield Path(record.export).resolve()
        yield from (Path(each.export).resolve() for each in record.previous)


def _rests_on(artifact: Artifact, store: Store) -> set[Path]:
    """The folders of an artifact and all before it; of all of the recipe, where one of them cannot be read now."""
    try:
        return {each.path.resolve() for each in history(artifact).artifacts}
    except OSError:
        return {path.resolve() for stage in ORDER for path in store.artifacts(stage)}


def _readable(path: Path) -> Artifact | None:
    try:
        return read_artifact(path)
    except OSError:
        return None


def _read_by(work: Path) -> Iterator[Path]:
    try:
        job = json.loads((work / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    yield from (Path(path).resolve() for path in job["inputs"].values())


def _item(path: Path, what: str) -> Unneeded:
    files = (each for each in path.rglob("*") if each.is_file() and not each.is_symlink())
    return Unneeded(path, what, sum(each.stat().st_size for each in files))
