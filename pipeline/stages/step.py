"""What a stage knows of the world outside: one job file in, events and output files out.

The controller writes ``job.json``; the step finds in it its settings, the folders of its
inputs and its own work directory::

    work/
      job.json      what to do (written by the controller)
      log.txt       everything that the process prints
      events.jsonl  progress, metrics and messages, one JSON object a line
      state/        checkpoints and finished shards; what was sealed (:meth:`Step.seal`) is
                    found again by the step that goes on after an interruption, all else
                    is dropped then; everything is dropped on success
      output/       what will be published; only files in here outlive the step
      result.json   the step's key figures, written last

Standard library only: this is imported in every toolchain.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

from pipeline import schema, strict_json
from pipeline.stages.seals import write_release, write_seal

Section = TypeVar("Section")


class InputError(Exception):
    """The step found fault with what the user gave it; shown as is, exit status 2."""


@dataclass
class Step:
    """One running step: settings, inputs, work directory, and a way to report.

    ``inputs`` maps names of :class:`pipeline.graph.Stage` ``consumes`` to folders of
    published artifacts; ``base_model`` is the user's Hugging Face folder, if any;
    ``identity`` is the step's full identity (a hexadecimal digest); ``grace_s`` how long it
    may go on when the controller is gone; ``earlier`` are the published artifacts of the same
    stage and recipe, which may hold what need not be computed again.
    """

    stage: str
    module: str
    recipe: str
    identity: str
    settings: dict[str, Any]
    inputs: dict[str, Path]
    base_model: Path | None
    work: Path
    threads: int
    grace_s: float = 20.0
    earlier: tuple[Path, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    _last_progress: float = 0.0

    @classmethod
    def load(cls, job: Path) -> Step:
        """Read a job file."""
        plain = json.loads(job.read_text(encoding="utf-8"))
        return cls(
            stage=plain["stage"],
            module=plain["module"],
            recipe=plain["recipe"],
            identity=plain["identity"],
            settings=plain["settings"],
            inputs={name: Path(path) for name, path in plain["inputs"].items()},
            base_model=Path(plain["base_model"]) if plain.get("base_model") else None,
            work=Path(plain["work"]),
            threads=plain["threads"],
            grace_s=plain.get("grace_s", 20.0),
            earlier=tuple(Path(path) for path in plain.get("earlier", ())),
            extra=plain.get("extra", {}),
        )

    @property
    def output(self) -> Path:
        """The folder whose content will be published."""
        path = self.work / "output"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def state(self) -> Path:
        """The folder whose sealed pieces survive an interruption; dropped on success."""
        path = self.work / "state"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def seal(self, piece: Path) -> None:
        """Declare a file or folder under ``state/`` complete, so that it outlives an interruption.

        It must not be written again; the piece is flushed to the disk and digested.
        """
        write_seal(self.work, piece)

    def release(self, files: Iterable[Path]) -> None:
        """Remove files of sealed pieces that nothing will read again; the pieces stay sealed."""
        write_release(self.work, files)

    def section(self, kind: type[Section]) -> Section:
        """The settings of one section, e.g. ``step.section(schema.Align)``."""
        return cast(Section, schema.from_plain(kind, self.settings[kind.__name__.lower()]))

    # -- reports -----------------------------------------------------------------------

    def progress(self, done: float, total: float, unit: str, note: str = "", *, every_s: float = 0.5) -> None:
        """Say how far the step is: ``done`` of ``total`` ``unit``s; at most every ``every_s``."""
        now = time.monotonic()
        if now - self._last_progress < every_s and done < total:
            return
        self._last_progress = now
        # Of a step that is killed nothing else says how large it was.
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        self._event("progress", done=done, total=total, unit=unit, note=note, memory_gb=round(memory, 2))

    def phase(self, name: str) -> None:
        """Name the part of the work that begins now; shown beside the stage's name."""
        self._last_progress = 0.0
        self._event("phase", name=name)

    def message(self, text: str) -> None:
        """A line that a person should see."""
        self._event("message", text=text)

    def warning(self, text: str) -> None:
        """A line that a person should see and may have to act on."""
        self._event("warning", text=text)

    def metric(self, step: int, **values: float) -> None:
        """Measured values at an optimiser step (losses, rates, accuracies)."""
        self._event("metric", step=step, values=values)

    def error(self, text: str) -> None:
        """Why the step ends now; the controller shows it instead of a traceback."""
        self._event("error", text=text)

    def finish(self, *, metrics: dict[str, Any], headline: str) -> None:
        """Record the step's key figures; the last call of every stage.

        ``metrics`` (JSON values) go to the manifest; ``headline`` is the short text of
        the summary table, e.g. ``"perplexity 43.1"``.
        """
        write_json(self.work / "result.json", {"metrics": metrics, "headline": headline})

    def _event(self, kind: str, **values: Any) -> None:
        line = strict_json.dumps({"time": time.time(), "kind": kind, **values}, ensure_ascii=False) + "\n"
        # One write of one line to a file opened for appending: readers never see half of it
        # and a killed step leaves at most a torn last line, which readers pass over.
        with open(self.work / "events.jsonl", "a", encoding="utf-8") as handle:
            handle.write(line)


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that a reader sees the old file or the new one, never half of one."""
    # A name of our own: two controllers may write the same file at once.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(
        strict_json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8"
    )
    os.replace(part, path)


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a JSONL file that this pipeline wrote (so: no broken lines)."""
    with open(path, encoding="utf-8") as handle:
        return [json.loads(line) for line in handle]


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> None:
    """Write records as JSONL, UTF-8, keys in the order given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as handle:
        for record in records:
            handle.write(strict_json.dumps(record, ensure_ascii=False) + "\n")
