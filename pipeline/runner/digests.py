"""SHA-256 of files, remembered by (path, size, mtime, inode) so that a no-op stays quick."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.runner.identity import digest_of
from pipeline.stages.seals import sha256_file
from pipeline.stages.step import write_json

SETTLED_S = 2.0  # coarser than any file system's clock


class DigestMemory:
    """Digests of input files that were read before, kept in one small JSON file.

    A file is read again when its size, modification time or inode differ from what is
    remembered.  The memory is only ever a shortcut: losing it costs time, and a damaged
    one is not believed.
    """

    def __init__(self, path: Path, reread: bool = False) -> None:
        """``reread``: trust nothing that was remembered, read every file once more."""
        self._path = path
        self._known: dict[str, list[Any]] = {}
        self._changed = False
        if path.exists() and not reread:
            try:
                kept = strict_json.loads(path.read_text(encoding="utf-8"))
                if kept["digest"] == digest_of(kept["files"]):
                    self._known = kept["files"]
            except (OSError, ValueError, KeyError, TypeError):
                pass  # not ours, or damaged; every file is simply read again

    def digest(self, path: Path) -> str:
        """SHA-256 of the file, from memory where it has not changed."""
        key = str(path.resolve())
        while True:
            seen = _seen(path)
            remembered = self._known.get(key)
            if remembered and remembered[:3] == seen:
                return str(remembered[3])
            value = sha256_file(path)
            if seen == _seen(path):  # else it was written while it was read
                break
        # A file changed twice within one tick of the clock shows the same time: not believed yet.
        if abs(time.time() - seen[1] / 1e9) > SETTLED_S:
            self._known[key] = [*seen, value]
            self._changed = True
        return value

    def save(self) -> None:
        """Keep what was learnt for the next run; a full disk only costs time then."""
        if self._changed:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True)
                write_json(self._path, {"files": self._known, "digest": digest_of(self._known)})


def _seen(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ino]
