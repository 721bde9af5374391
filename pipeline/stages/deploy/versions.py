"""Starting one version of the model: a Triton of its own on loopback, for one export."""

from __future__ import annotations

import json
import secrets
import shutil
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.serving.server import ServerRecord
from pipeline.serving.server import stop as stop_server
from pipeline.stages.deploy import triton

THREADS = 2
KEPT = 3  # folders of versions that are gone, for their logs
RACES = 3  # tries, where somebody takes a port between our finding it and Triton's taking it


@dataclass(frozen=True)
class Export:
    """A published export: its folder, and what its export.json says."""

    folder: Path
    identity: str
    model_name: str
    target: str
    models: dict[str, dict[str, str]]

    @classmethod
    def read(cls, folder: Path) -> Export:
        plain = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        return cls(folder, plain["identity"], plain["model_name"], plain["target"], plain["models"])


def start(
    export: Export,
    folder: Path,
    running: ServerRecord | None,
    threads: int,
    timeout_s: int,
    waiting: Callable[[float], None] = lambda waited: None,
) -> tuple[ServerRecord, float]:
    """Start a version under ``folder`` and wait for its first answer; returns it and the seconds of that answer.

    ``running`` is the version that answers now: its files stay.

    Raises :class:`triton.StartFailed`; nothing is left running then.
    """
    _tidy(folder, running)
    for race in range(RACES):
        process, record = triton.start(
            ports=_free_ports(),
            repository=export.folder / "repository",
            model_name=export.model_name,
            identity=export.identity,
            folder=folder / f"{export.identity[:12]}-{secrets.token_hex(3)}",
            threads=min(THREADS, threads),
        )
        try:
            return record, triton.wait_until_answering(process, record, timeout_s, waiting)
        except BaseException as error:
            stop_server(record)
            taken = isinstance(error, triton.StartFailed) and "Address already in use" in str(error)
            if not taken or race + 1 == RACES:
                raise
    raise AssertionError


def _free_ports() -> tuple[int, int, int]:
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        first, second, third = (int(each.getsockname()[1]) for each in sockets)
        return first, second, third
    finally:
        for each in sockets:
            each.close()


def _tidy(folder: Path, running: ServerRecord | None) -> None:
    """Drop the oldest folders, and never that of the server that runs."""
    kept = Path(running.log).parent if running else None
    found: list[Any] = sorted(folder.glob("*"), key=lambda path: path.stat().st_mtime, reverse=True)
    for each in found[KEPT:]:
        if each != kept:
            shutil.rmtree(each, ignore_errors=True)
