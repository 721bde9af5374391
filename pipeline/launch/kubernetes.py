"""placeholder"""

from __future__ import annotations

from pathlib import Path

from pipeline.launch.orders import Job, Order


def send(order: Order, folder: Path, dry: bool) -> list[Job]:
    raise NotImplementedError


def look(order: Order, folder: Path) -> None: ...
def cancel(order: Order) -> None: ...
