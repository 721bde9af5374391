"""Starting the keeper of what runs: by a deployment, and by the gateway where the keeper is gone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from pipeline.serving import service
from pipeline.serving.background import begin
from pipeline.serving.processes import Mark


def start(python: Path, path: Path, record: service.Service) -> int:
    """Start a keeper and put it into the record at ``path``; returns its process id.

    For who holds :func:`service.changing`.  One that was there before ends by itself: the record names another.
    """
    process = begin(python, service.KEEPER, path, service.folder_of(path) / "keeper.log")
    service.write(path, dataclasses.replace(record, keeper=Mark.of(process.pid)))
    return process.pid
