"""What made an artifact: code, toolchain and machine.  Recorded, never part of identity."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import socket
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pipeline
from pipeline.graph import Stage
from pipeline.toolchains import ROOT, Toolchain

# "from a.b import c, d" (or in parentheses) and "import a.b", at any depth of indentation.
IMPORT = re.compile(
    r"^[ \t]*(?:from\s+([\w.]+)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+([\w.]+))", re.MULTILINE
)


def machine() -> dict[str, Any]:
    """The machine that this runs on."""
    return {
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "processor": processor(),
        "system": platform.platform(),
    }


def provenance(stage: Stage, toolchain: Toolchain) -> dict[str, Any]:
    """Versions and digests of what runs a step, and the machine it runs on."""
    return {
        "nemo_lifecycle": pipeline.__version__,
        "code": {"commit": commit(), "source_digest": source_digest(stage)},
        "toolchain": {
            "name": toolchain.name,
            "lock_digest": toolchain.lock_digest(),
            "python": toolchain.python_version(),
        },
        "machine": machine(),
    }


def changes_since(made_by: dict[str, Any], stage: Stage, toolchain: Toolchain) -> list[str]:
    """What differs between now and when something was made: the stage's code, its toolchain's lock."""
    found = []
    if made_by.get("code", {}).get("source_digest") != source_digest(stage):
        found.append("code changed since")
    if made_by.get("toolchain", {}).get("lock_digest") != toolchain.lock_digest():
        found.append(f"{toolchain.name} toolchain changed since")
    return found


@lru_cache
def source_digest(stage: Stage) -> str:
    """SHA-256 over the source files that a stage's work consists of.

    These are its module, every module of this package that it imports, directly or not,
    and the files it carries.  A change elsewhere (the display, another stage) leaves it.
    """
    state = hashlib.sha256()
    files = source_files(stage.source)
    for folder in stage.carries:
        files |= {path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"}
    for file in sorted(files):
        state.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return state.hexdigest()


def source_files(module: str) -> set[Path]:
    """The files of a module of this repository and of what it imports from it (read, not imported)."""
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        base = ROOT / Path(*name.split("."))
        file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if file in found or not file.is_file():
            continue
        found.add(file)
        top = name.split(".", 1)[0]
        for match in IMPORT.finditer(file.read_text(encoding="utf-8")):
            source, names = match.group(1) or match.group(3), match.group(2) or ""
            if source.split(".", 1)[0] != top:
                continue
            waiting.append(source)
            waiting += [f"{source}.{each}" for each in re.findall(r"\w+", names)]
    return found


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
