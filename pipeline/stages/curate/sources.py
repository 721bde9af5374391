"""Raw documents from every source of a recipe, as JSONL shards of one record layout.

A raw document is ``{"id", "name", "kind", "source", "text", "arguments"}``.  What cannot
be read is put down with file, line and reason, counted, and stops the run only beyond a
set share.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.documents import named_files
from pipeline.schema import Curate, Source
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.pool import worker_pool
from pipeline.stages.step import InputError, Step, write_json, write_jsonl

SHARD = 4000  # documents
FILES_A_TASK = 40
SHOWN_REASONS = 5


class Quarantine:
    """Records that could not be read: where and why; and how many were read well, by input.

    ``role`` is the input that is being read, named as the manifest names it
    (``sources.0/docs.jsonl``): the published record must not depend on where the data lie.
    """

    def __init__(self) -> None:
        self.role = ""
        self.bad: list[dict[str, Any]] = []
        self.good: Counter[str] = Counter()
        self._files: dict[str, str] = {}

    def add(self, file: Path, line: int, reason: str) -> None:
        """Put a record down as unreadable."""
        self._files[self.role] = str(file)
        self.bad.append({"input": self.role, "line": line, "reason": reason})

    def read_well(self) -> None:
        """Count a record as read."""
        self.good[self.role] += 1

    def counts(self) -> dict[str, dict[str, int]]:
        """Records read and unreadable, by input."""
        bad = Counter(str(each["input"]) for each in self.bad)
        return {
            role: {"records": self.good[role], "unreadable": bad[role]}
            for role in sorted(self.good.keys() | bad.keys())
        }

    def check(self, max_share: float) -> None:
        """Raise :class:`InputError` when more than ``max_share`` of the records were bad."""
        total = self.good.total() + len(self.bad)
        if total and len(self.bad) / total > max_share:
            first = "\n".join(
                f"  {self._files.get(b['input'], b['input'])}:{b['line']}: {b['reason']}"
                for b in self.bad[:SHOWN_REASONS]
            )
            raise InputError(
                f"{len(self.bad):,} of {total:,} input records cannot be read, more than "
                f"curate.max_bad_share = {max_share:g} allows; the first of them:\n{first}\n"
                "Mend the files, or raise curate.max_bad_share"
            )


def write_raw_shards(step: Step, curate: Curate, workers: int) -> tuple[list[Path], Quarantine]:
    """Write every source's documents to ``state/raw/*.jsonl``; returns the shards in order.

    Once all are written the folder is sealed: a step that goes on does not read again.
    Raises :class:`InputError` when there is no document at all, or too many bad records.
    """
    quarantine = Quarantine()
    folder = step.state / "raw"
    if folder.exists():
        kept = json.loads((folder / "read.json").read_text(encoding="utf-8"))
        quarantine.bad, quarantine.good = kept["bad"], Counter(kept["good"])
        return sorted(folder.glob("*.jsonl")), quarantine
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    seen: dict[str, int] = {}
    shards: list[str] = []
    batch: list[dict[str, Any]] = []

    def flush() -> None:
        shards.append(f"{len(shards):05d}.jsonl")
        write_jsonl(part / shards[-1], batch)
        batch.clear()

    for index, source in enumerate(curate.sources):
        read = _documents(step, index, source, quarantine, workers)
        for count, document in enumerate(read, start=1):
            name = document["id"]
            seen[name] = seen.get(name, 0) + 1
            if seen[name] > 1:  # the same name defined twice, as under if / else
                document["id"] = f"{name}#{seen[name]}"
            batch.append(document)
            if len(batch) == SHARD:
                flush()
            if source.max_documents and count >= source.max_documents:
                break
    if batch:
        flush()
    quarantine.check(curate.max_bad_share)
    if not shards:
        where = ", ".join(source.path or ", ".join(source.packages) for source in curate.sources)
        raise InputError(f"curate.sources: no document was found in {where}")
    write_json(part / "read.json", {"bad": quarantine.bad, "good": quarantine.good})
    part.rename(folder)
    step.seal(folder)
    return [folder / name for name in shards], quarantine


def read_records(path: Path, quarantine: Quarantine) -> Iterator[tuple[int, dict[str, Any]]]:
    """The (line number, object) pairs of a JSONL file; what is not one goes to quarantine."""
    with open(path, "rb") as handle:
        for number, raw in enumerate(handle, start=1):
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8"))
            except UnicodeDecodeError:
                quarantine.add(path, number, "not UTF-8")
                continue
            except ValueError as error:
                quarantine.add(path, number, f"not JSON: {error}")
                continue
            if not isinstance(record, dict):
                quarantine.add(path, number, f"expected an object, found a {type(record).__name__}")
                continue
            yield number, record


def _documents(
    step: Step, index: int, source: Source, quarantine: Quarantine, workers: int
) -> Iterator[dict[str, Any]]:
    if source.kind == "python-docs":
        yield from _python_docs(step, index, source, quarantine, workers)
        return
    read = _jsonl if source.kind == "jsonl" else _text
    for file, name in named_files(source):
        quarantine.role = f"sources.{index}/{name}"
        yield from read(file, source, quarantine)


def _python_docs(
    step: Step, index: int, source: Source, quarantine: Quarantine, workers: int
) -> Iterator[dict[str, Any]]:
    files = [
        (module, file, package) for package in source.packages for module, file in package_sources(package)
    ]
    tasks = [files[start : start + FILES_A_TASK] for start in range(0, len(files), FILES_A_TASK)]
    with worker_pool(workers) as pool:
        for done, found in enumerate(pool.map(_harvest, tasks), start=1):
            step.progress(min(done * FILES_A_TASK, len(files)), len(files), "files")
            for document in found:
                quarantine.role = f"sources.{index}/{document['source']}"
                quarantine.read_well()
                yield {"id": document["name"], **document}


def _harvest(files: list[tuple[str, Path, str]]) -> list[dict[str, Any]]:
    return [
        document for module, file, package in files for document in read_docstrings(module, file, package)
    ]


def _jsonl(file: Path, source: Source, quarantine: Quarantine) -> Iterator[dict[str, Any]]:
    for number, record in read_records(file, quarantine):
        text = record.get(source.text_field)
        if not isinstance(text, str) or not text.strip():
            quarantine.add(file, number, f"field {source.text_field!r} is missing, empty or not text")
            continue
        title = record.get(source.title_field)
        quarantine.read_well()
        yield _document(f"{file.name}:{number}", title if isinstance(title, str) else "", file, text)


def _text(file: Path, source: Source, quarantine: Quarantine) -> Iterator[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        quarantine.add(file, 1, f"not UTF-8 (byte {error.start})")
        return
    if not text.strip():
        quarantine.add(file, 1, "empty")
        return
    heading = next((line.lstrip("# ").strip() for line in text.splitlines() if line.startswith("# ")), "")
    quarantine.read_well()
    yield _document(file.name, heading or file.stem, file, text)


def _document(identifier: str, name: str, file: Path, text: str) -> dict[str, Any]:
    # A lone surrogate escaped in JSON cannot be written as UTF-8.
    clean = text.encode("utf-8", "replace").decode("utf-8")
    return {
        "id": identifier, "name": name.strip(), "kind": "document", "source": file.name, "text": clean, "arguments": [],
    }  # fmt: skip
