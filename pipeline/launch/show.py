"""The jobs of a submission as ``lifecycle status`` shows them."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline import terminal
from pipeline.errors import LifecycleError
from pipeline.launch.orders import read_order
from pipeline.launch.status import BAD, jobs_of, last_seen


def print_jobs(submission: Path, console: Console | None = None) -> None:
    """Print the jobs of a submission: number, state, why, log; of a failed one, its log's last lines."""
    order = read_order(submission)
    console = console or terminal.console()
    if not console.is_terminal:
        console = terminal.console(width=200)
    title = f"submitted to {order.site['name']} on {order.created}"
    try:
        jobs = jobs_of(submission)
    except LifecycleError as error:  # the rest of the status does not hang on a cluster that is away
        jobs = last_seen(submission)
        title += f"; as last seen, for now {error}"
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for heading in ("stage", "job", "state", "restarts", "why", "log"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "restarts" else "left")
    for job in jobs:
        style = "red" if job.state in BAD else "yellow" if job.live else "green"
        table.add_row(
            job.stage,
            job.id,
            terminal.text(job.state.lower(), style=style),
            str(job.restarts or ""),
            terminal.text(job.reason or (f"on {job.host}" if job.host else "")),
            terminal.text(_log(job.log)),
        )
    console.print(f"\n{title}", markup=False, soft_wrap=True)
    console.print(table)
    for job in jobs:
        if job.state in BAD and job.tail():
            console.print(f"\nthe end of {job.stage}'s log:")
            for line in job.tail():
                console.print(f"  | {line}", markup=False, soft_wrap=True)


def _log(log: str) -> str:
    if not log.startswith("/"):
        return log  # not a file here, but a command that shows it
    if not Path(log).exists():
        return ""  # a job that has not begun
    relative = os.path.relpath(log)
    return log if relative.startswith("..") else relative
