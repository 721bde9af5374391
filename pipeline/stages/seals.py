"""Proof that a piece of unfinished work is whole: its files' digests, written down when it was.

A step calls :meth:`pipeline.stages.step.Step.seal` for every checkpoint or shard under its
``state/`` once it is complete.  The seal is a line of ``work/seals.jsonl``, written after
the files were flushed to the disk.  Before an interrupted step goes on, the controller
keeps only what a seal proves (:func:`keep_sound`):

* a sealed piece whose files still have their digests is kept;
* a sealed piece with files missing is the rest of an interrupted removal, and dropped;
* files of a sealed piece that were released (:func:`write_release`) may be there or not, and go;
* a sealed piece whose bytes changed goes to quarantine;
* what was never sealed is the unfinished piece of the interrupted attempt, and dropped.

Standard library only: this is imported in every toolchain and by the controller.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pipeline import strict_json

SEALS = "seals.jsonl"
DIGESTED_AT_ONCE = 8  # files; hashing a large one does not hold the interpreter


def sha256_file(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def entries(files: list[Path]) -> list[dict[str, Any]]:
    """SHA-256 and size of each file, in order; several at a time, for a checkpoint has one a process."""
    with ThreadPoolExecutor(min(DIGESTED_AT_ONCE, len(files) or 1)) as pool:
        return list(pool.map(_entry, files))


def sync_path(path: Path) -> None:
    """Flush one file or folder to the disk (fsync(2)); links have nothing to flush."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk, leaves first."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_path(Path(parent) / name)
        sync_path(Path(parent))


def write_seal(work: Path, piece: Path) -> None:
    """Seal a file or folder under ``work/state``; it must not be written again.

    Files first, then the folders that name them, then the seal: after a crash at any
    point a seal speaks of files that are on the disk.
    """
    found = _files(piece)
    names = (file.relative_to(piece).as_posix() for file in found)
    files = dict(zip(names, entries(found), strict=True))
    if piece.is_dir():
        sync_tree(piece)
    else:
        sync_path(piece)
    for parent in piece.relative_to(work).parents:
        sync_path(work / parent)
    line = (
        strict_json.dumps({"piece": piece.relative_to(work).as_posix(), "files": files}, sort_keys=True)
        + "\n"
    )
    with open(work / SEALS, "a", encoding="utf-8") as handle:
        handle.write(line)
        handle.flush()
        os.fsync(handle.fileno())
    sync_path(work)


def write_release(work: Path, files: Iterable[Path]) -> None:
    """Remove sealed files that the step will never read again; their pieces stay sound without them.

    First on record, then on the disk: after a crash between the two they are removed when
    the step goes on.
    """
    seals = read_seals(work)
    changed: dict[str, dict[str, Any]] = {}
    released: list[Path] = []
    for file in files:
        name = file.relative_to(work)
        owners = [parent.as_posix() for parent in name.parents if parent.as_posix() in seals]
        if not owners:
            raise ValueError(f"{file} is in no sealed piece")
        piece = owners[0]
        within = name.relative_to(piece).as_posix()
        if seals[piece].get(within) is not None:
            seals[piece][within] = None
            changed[piece] = seals[piece]
        released.append(file)
    if changed:
        with open(work / SEALS, "a", encoding="utf-8") as handle:
            for piece, digests in changed.items():
                handle.write(strict_json.dumps({"piece": piece, "files": digests}, sort_keys=True) + "\n")
            handle.flush()
            os.fsync(handle.fileno())
    for path in released:
        path.unlink(missing_ok=True)


def read_seals(work: Path) -> dict[str, dict[str, Any]]:
    """The sealed pieces of a work folder: path below ``work`` to its files' digests and sizes.

    A released file has None instead.  A later seal of the same piece replaces an earlier one; a torn last line seals nothing.
    """
    found: dict[str, dict[str, Any]] = {}
    path = work / SEALS
    if not path.exists():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            seal = json.loads(line)
            found[str(seal["piece"])] = dict(seal["files"])
        except (ValueError, KeyError, TypeError):
            continue
    return found


def keep_sound(work: Path, quarantine: Callable[[Path, str], object]) -> list[str]:
    """Leave in ``work/state`` what seals prove; returns what was done about the rest, in words.

    ``quarantine(path, reason)`` is called for a sealed piece whose bytes changed.
    """
    said: list[str] = []
    sound: dict[str, dict[str, Any]] = {}
    for name, files in read_seals(work).items():
        piece = work / name
        if not piece.exists():
            continue
        fault = _fault(piece, files)
        if fault is None:
            sound[name] = files
            for released in (file for file, entry in files.items() if entry is None):
                (piece / released).unlink(missing_ok=True)
        elif fault.endswith("is missing"):
            said.append(f"{name} is not whole ({fault}) and is made again")
            _remove(piece)
        else:
            said.append(f"{name} is damaged ({fault}): moved to quarantine, and made again")
            quarantine(piece, f"interrupted work that is not what was sealed: {fault}")
    _drop_unsealed(work / "state", work, set(sound))
    lines = [strict_json.dumps({"piece": n, "files": f}, sort_keys=True) + "\n" for n, f in sound.items()]
    part = work / f"{SEALS}.part"
    part.write_text("".join(lines), encoding="utf-8")
    os.replace(part, work / SEALS)
    return said


def _drop_unsealed(folder: Path, work: Path, sound: set[str]) -> None:
    """Remove what is neither in a sealed piece nor on the way to one; links live if they lead to one."""
    if not folder.is_dir():
        return
    for entry in sorted(folder.iterdir()):
        name = entry.relative_to(work).as_posix()
        if name in sound:
            continue
        if entry.is_symlink():
            target = Path(os.path.normpath(entry.parent / entry.readlink()))
            if not (target.is_relative_to(work) and target.relative_to(work).as_posix() in sound):
                entry.unlink()
        elif entry.is_dir() and any(piece.startswith(f"{name}/") for piece in sound):
            _drop_unsealed(entry, work, sound)
        else:
            _remove(entry)


def _fault(piece: Path, files: dict[str, Any]) -> str | None:
    present = {file.relative_to(piece).as_posix(): file for file in _files(piece)}
    for name in sorted(files.keys() - present.keys()):
        if files[name] is not None:
            return f"{name} is missing"
    for name in present:
        if name not in files:
            return f"{name} was added"
    held = [name for name in present if files[name] is not None]
    for name, entry in zip(held, entries([present[name] for name in held]), strict=True):
        if entry != files[name]:
            return f"{name} differs" if name != "." else "its bytes differ"
    return None


def _files(piece: Path) -> list[Path]:
    if not piece.is_dir():
        return [piece]
    return sorted(path for path in piece.rglob("*") if path.is_file() and not path.is_symlink())


def _entry(file: Path) -> dict[str, Any]:
    return {"sha256": sha256_file(file), "bytes": file.stat().st_size}


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
