"""Run the light chain on small file systems; prints what happened as JSON.

    unshare -m python -m tests.faults.small_disk FOLDER DOCUMENTS KIB ...

For each size: a tmpfs of that many KiB, the chain, more room, the chain again.  The same with
file systems of few inodes, and with a file system that is read-only at first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.faults.harness import Light

INODES = (8, 30, 45)


def main(folder: Path, documents: Path, sizes: list[int]) -> list[dict[str, Any]]:
    trials = []
    for kib in sizes:
        _mount(folder, f"size={kib}k")
        trials.append(_trial(folder, documents, "small disk that fills up", "full"))
        subprocess.run(["umount", str(folder)], check=True)
    for inodes in INODES:
        _mount(folder, f"size=16m,nr_inodes={inodes}")
        trials.append(_trial(folder, documents, "small disk that runs out of inodes", "inodes left"))
        subprocess.run(["umount", str(folder)], check=True)
    _mount(folder, "size=16m")
    _mount(folder, "remount,ro")
    trials.append(_trial(folder, documents, "read-only disk", "cannot be used"))
    subprocess.run(["umount", str(folder)], check=True)
    return trials


def _trial(folder: Path, documents: Path, what: str, words: str) -> dict[str, Any]:
    light = Light(folder, documents)
    status, output = light()
    _mount(folder, "remount,rw,size=16m,nr_inodes=9999")
    again, again_output = light()
    return {
        "what": what,
        "words": words,
        "status": status,
        "output": output,
        "again": again,
        "again_output": again_output,
        "published": light.published() if again == 0 else None,
    }


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), [int(word) for word in sys.argv[3:]])))
