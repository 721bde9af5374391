"""What a person sees while the chain runs: one live line a stage, or plain lines in a log."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline import terminal

PLAIN_EVERY_S = 15.0


class Rate:
    """Rate and time left of one phase, over its last half minute."""

    def __init__(self) -> None:
        self._seen: list[tuple[float, float]] = []
        self.total = 0.0

    def add(self, done: float, total: float, now: float) -> None:
        """Note that ``done`` of ``total`` were finished at ``now`` (seconds)."""
        if self._seen and done < self._seen[-1][1]:
            self._seen = []
        self._seen.append((now, done))
        self.total = total
        while len(self._seen) > 2 and now - self._seen[0][0] > 30:
            self._seen.pop(0)

    @property
    def done(self) -> float:
        return self._seen[-1][1] if self._seen else 0.0

    def per_second(self) -> float | None:
        """Units per second, or None while too little is known."""
        if len(self._seen) < 2 or self._seen[-1][0] <= self._seen[0][0]:
            return None
        return (self._seen[-1][1] - self._seen[0][1]) / (self._seen[-1][0] - self._seen[0][0])

    def seconds_left(self) -> float | None:
        """Seconds to the end of the phase, or None while too little is known."""
        rate = self.per_second()
        return (self.total - self.done) / rate if rate else None


class Display:
    """Plain lines, for logs; the terminal's version adds the live line.

    The order of calls is ``start``, any number of ``event`` and ``tick``, then ``end``;
    ``skip`` stands for a step that needs nothing.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or terminal.console(soft_wrap=True)
        self.stage = ""
        self.phase = ""
        self.remark = ""
        self.unit = ""
        self.rate = Rate()
        self.started = 0.0
        self._last_line = 0.0

    def start(self, stage: str, why: str) -> None:
        """A step begins; ``why`` says why it runs."""
        self.stage, self.phase, self.remark, self.unit, self.rate = stage, "", "", "", Rate()
        self.started = self._last_line = time.monotonic()
        self.line(f"[bold]{stage:<9}[/bold] starts: ", why)

    def event(self, event: dict[str, Any]) -> None:
        """Take in one event of the running step."""
        kind = event["kind"]
        if kind == "phase":
            self.phase, self.remark, self.rate = str(event["name"]), "", Rate()
        elif kind == "progress":
            self.rate.add(event["done"], event["total"], time.monotonic())
            self.remark, self.unit = str(event.get("note", "")), str(event["unit"])
        elif kind == "warning":
            self.line(f"[bold]{self.stage:<9}[/bold] [yellow]warning:[/yellow] ", str(event["text"]))
        elif kind == "message":
            self.line(f"[bold]{self.stage:<9}[/bold] ", str(event["text"]))

    def tick(self) -> None:
        """Called several times a second while a step runs."""
        if time.monotonic() - self._last_line >= PLAIN_EVERY_S:
            self._last_line = time.monotonic()
            self.line(f"[bold]{self.stage:<9}[/bold] ", self.words())

    def end(self, headline: str, seconds: float) -> None:
        """The running step ended well."""
        self.line(f"[bold]{self.stage:<9}[/bold] [green]done[/green] in {duration(seconds)}: ", headline)

    def fail(self) -> None:
        """The running step ended badly; the error is printed by the caller."""

    def skip(self, stage: str, headline: str) -> None:
        """A step that is done already."""
        self.line(f"[bold]{stage:<9}[/bold] [dim]up to date:[/dim] ", headline)

    def note(self, stage: str, text: str) -> None:
        """A line about a step before its process starts."""
        self.line(f"[bold]{stage:<9}[/bold] ", text)

    def line(self, markup: str, text: str = "") -> None:
        """Print one line: our own markup, then text that is shown as it is."""
        self.console.print(Text.from_markup(markup).append_text(terminal.text(text)), soft_wrap=True)

    def words(self) -> str:
        """Phase, progress, rate and time left, in words."""
        parts = [self.phase] if self.phase else []
        if self.rate.total:
            parts.append(f"{count(self.rate.done)}/{count(self.rate.total)} {self.unit}")
            rate, left = self.rate.per_second(), self.rate.seconds_left()
            if rate:
                parts.append(f"{count(rate)}/s")
            if left is not None and self.rate.done < self.rate.total:
                parts.append(f"{duration(left)} left")
        if self.remark:
            parts.append(self.remark)
        return ", ".join(parts) or "starting"


class LiveDisplay(Display):
    """The same on a terminal, with one line that moves while a step runs."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self._live: Live | None = None

    def start(self, stage: str, why: str) -> None:
        super().start(stage, why)
        self._live = Live(self._render(), console=self.console, refresh_per_second=8, transient=True)
        self._live.start()

    def tick(self) -> None:
        if self._live:
            self._live.update(self._render())

    def end(self, headline: str, seconds: float) -> None:
        self.fail()
        super().end(headline, seconds)

    def fail(self) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def _render(self) -> Group:
        row = Table.grid(padding=(0, 1))
        row.add_row(
            Text(f"{self.stage:<9}", style="bold"),
            ProgressBar(
                total=self.rate.total or None, completed=self.rate.done, width=28, pulse=not self.rate.total
            ),
            Text(
                terminal.visible(f"{duration(time.monotonic() - self.started)}  {self.words()}"),
                overflow="ellipsis",
                no_wrap=True,
            ),
        )
        return Group(row)


def make_display(plain: bool = False) -> Display:
    """The display that fits where the output goes."""
    if plain or not sys.stdout.isatty():
        return Display()
    return LiveDisplay()


def duration(seconds: float) -> str:
    """Seconds as ``8.2 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count(value: float) -> str:
    """A count for people: thousands apart, decimals only where they say something."""
    if value >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}"
