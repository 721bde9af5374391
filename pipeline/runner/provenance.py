"""What made an artifact: code, toolchain and machine.  Recorded, never part of identity."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pipeline
from pipeline.toolchains import ROOT, Toolchain


def provenance(toolchain: Toolchain) -> dict[str, Any]:
    """Versions and digests of what ran a step, and the machine it ran on."""
    return {
        "nemo_lifecycle": pipeline.__version__,
        "code": {"commit": commit(), "source_digest": source_digest()},
        "toolchain": {
            "name": toolchain.name,
            "lock_digest": toolchain.lock_digest(),
            "python": toolchain.python_version(),
        },
        "machine": {"cores": os.cpu_count(), "processor": processor(), "system": platform.platform()},
    }


@lru_cache
def source_digest() -> str:
    """SHA-256 over the package's source files."""
    state = hashlib.sha256()
    for file in sorted((ROOT / "pipeline").rglob("*.py")):
        state.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return state.hexdigest()


@lru_cache
def commit() -> str | None:
    """The checked-out commit, with ``+changes`` where files differ from it; None outside git."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
            )
        except FileNotFoundError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return f"{head}+changes" if head and git("status", "--porcelain", "-uno") else head


@lru_cache
def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
