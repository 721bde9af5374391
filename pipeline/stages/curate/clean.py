"""NeMo Curator's stages over shards of raw documents, in a pool of processes.

The stage objects are Curator's own ``ProcessingStage``s, each given one ``DocumentBatch``
a shard; any of its executors would drive them the same way.  Its default executor
refuses machines with two cores, and a process pool needs no Ray cluster.

A finished shard is a folder with its documents and its drop counts, renamed into place
and sealed, so an interrupted run does only the unfinished ones again.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from concurrent.futures import as_completed
from functools import cache, partial
from pathlib import Path
from typing import Any

from pipeline.schema import CurateFilters
from pipeline.stages.curate.redact import redact
from pipeline.stages.pool import worker_pool
from pipeline.stages.step import Step, read_jsonl, write_json, write_jsonl

DOCUMENTS, COUNTS = "documents.jsonl", "counts.json"  # of a cleaned shard


def clean_shards(
    step: Step, raw: list[Path], filters: CurateFilters, kinds: list[str], workers: int
) -> tuple[list[Path], Counter[str], Counter[str]]:
    """Clean, filter and redact every shard.

    Returns the cleaned shards in order, the number of documents dropped by each filter,
    and the number of replacements of each kind of personal data.
    """
    folder = step.state / "clean"
    folder.mkdir(exist_ok=True)
    dropped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    targets = [folder / path.stem for path in raw]
    waiting = [(source, target) for source, target in zip(raw, targets, strict=True) if not target.exists()]
    work = partial(_clean_shard, filters=filters, kinds=kinds)
    with worker_pool(workers) as pool:
        running = [pool.submit(work, source, target) for source, target in waiting]
        for done, finished in enumerate(as_completed(running), start=1):
            step.seal(finished.result())
            step.progress(len(raw) - len(waiting) + done, len(raw), "shards")
    for target in targets:
        counts = json.loads((target / COUNTS).read_text(encoding="utf-8"))
        dropped.update(counts["dropped"])
        redacted.update(counts["redacted"])
    return [target / DOCUMENTS for target in targets], dropped, redacted


@cache
def curator_stages(**thresholds: Any) -> list[tuple[str, Any]]:
    """(name, Curator stage) pairs: Unicode repair, then the filters of the recipe."""
    from nemo_curator.stages.text.filters import ScoreFilter
    from nemo_curator.stages.text.filters.heuristic import (
        MeanWordLengthFilter,
        NonAlphaNumericFilter,
        SymbolsToWordsFilter,
        WordCountFilter,
    )
    from nemo_curator.stages.text.filters.heuristic.repetition import RepeatedLinesFilter
    from nemo_curator.stages.text.modifiers import Modify
    from nemo_curator.stages.text.modifiers.unicode import UnicodeReformatter

    f = CurateFilters(**thresholds)
    filters = [
        WordCountFilter(min_words=f.min_words, max_words=f.max_words),
        MeanWordLengthFilter(f.min_mean_word_length, f.max_mean_word_length),
        SymbolsToWordsFilter(f.max_symbol_to_word),
        NonAlphaNumericFilter(f.max_non_alpha_numeric),
        # Curator scores the share of lines that are unique, and keeps from a share upwards.
        RepeatedLinesFilter(1.0 - f.max_repeated_lines),
    ]
    stages: list[tuple[str, Any]] = [
        ("UnicodeReformatter", Modify(UnicodeReformatter(explain=False), input_fields="text"))
    ]
    return stages + [(type(each).__name__, ScoreFilter(each, text_field="text")) for each in filters]


def _clean_shard(source: Path, target: Path, *, filters: CurateFilters, kinds: list[str]) -> Path:
    """Make the folder ``target`` of a raw shard; returns it."""
    import pandas as pd
    from nemo_curator.tasks import DocumentBatch

    frame = pd.DataFrame(read_jsonl(source))
    dropped: Counter[str] = Counter()
    for name, stage in curator_stages(**vars(filters)):
        if frame.empty:
            break
        before = len(frame)
        batch = stage.process(DocumentBatch(dataset_name="documents", data=frame))
        frame = frame.iloc[:0] if batch is None else batch.to_pandas()
        dropped[name] += before - len(frame)
    records = frame.to_dict("records")
    redacted: Counter[str] = Counter()
    for record in records:
        record["text"] = redact(record["text"], kinds, redacted)
        record["arguments"] = list(record["arguments"])
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    write_jsonl(part / DOCUMENTS, records)
    write_json(part / COUNTS, {"dropped": dropped, "redacted": redacted})
    part.rename(target)
    return target
