"""SHA-256 of files, remembered by (path, size, mtime, inode) so that a no-op stays quick."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pipeline.stages.step import write_json


def sha256_file(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


class DigestMemory:
    """Digests of input files that were read before, kept in one small JSON file.

    A file is read again when its size, modification time or inode differ from what is
    remembered.  The memory is only ever a shortcut: losing it costs time.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, list[object]] = {}
        self._changed = False
        if path.exists():
            try:
                self._known = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                self._known = {}  # torn by a crash; every file is simply read again

    def digest(self, path: Path) -> str:
        """SHA-256 of the file, from memory where it has not changed."""
        stat = path.stat()
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        key = str(path.resolve())
        remembered = self._known.get(key)
        if remembered and remembered[:3] == seen:
            return str(remembered[3])
        value = sha256_file(path)
        self._known[key] = [*seen, value]
        self._changed = True
        return value

    def save(self) -> None:
        """Keep what was learnt for the next run."""
        if self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._known)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder`` to the disk, leaves first."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_path(Path(parent) / name)
        sync_path(Path(parent))


def sync_path(path: Path) -> None:
    """Flush one file or folder to the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
