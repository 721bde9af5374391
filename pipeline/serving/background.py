"""Starting a program of this package that outlives the step."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from pipeline.surroundings import settled
from pipeline.toolchains import ROOT


def begin(python: Path, module: str, file: Path, log: Path) -> subprocess.Popen[bytes]:
    """``python -m module file``, in a session of its own; what it prints goes on at the end of ``log``."""
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(python), "-m", module, str(file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**settled(os.environ, log.parent), "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            start_new_session=True,
        )
