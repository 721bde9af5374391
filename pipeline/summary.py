"""The table at the end of a run, and of ``lifecycle status``: stage, time, figures, place."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline import terminal
from pipeline.runner.chain import Planned
from pipeline.runner.display import duration

STATES = {"ran": "green", "done": "green", "resume": "yellow", "run": "yellow", "blocked": "red"}


def summary_table(planned: list[Planned]) -> Table:
    """One row a stage: state, time it took, key figures, where the artifact is."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("stage", "state", "time", "key figures", "artifact"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "time" else "left")
    for item in planned:
        manifest = item.artifact.manifest if item.artifact else None
        table.add_row(
            item.step.name,
            terminal.text(item.state, style=STATES[item.state]),
            duration(manifest["seconds"]) if manifest else "",
            terminal.text(manifest["headline"] if manifest and item.state in ("ran", "done") else item.why),
            terminal.text(_short(item.artifact.path)) if item.artifact else "",
        )
    return table


def print_summary(planned: list[Planned], console: Console | None = None) -> None:
    """Print the summary table; in a log it is as wide as its content."""
    console = console or terminal.console()
    if not console.is_terminal:
        console = terminal.console(width=200)
    console.print()
    console.print(summary_table(planned))


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
