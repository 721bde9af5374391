"""This pipeline's curation: read, Unicode repair, filters and, on request, near-duplicates.

The same parts that the stage ``curate`` is made of, as far as the others go: no split, no
tokenizer, no pairs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from nemo_curator.tasks import FileGroupTask

import pipeline
from benchmarks.sides import common
from pipeline.schema import Curate, Source
from pipeline.stages.curate import passes, reading
from pipeline.stages.curate.drivers import PoolDriver
from pipeline.stages.curate.shards import DOCUMENTS, FolderWork, ShardWork


def main() -> None:
    given = common.arguments()
    shutil.rmtree(given.output, ignore_errors=True)
    given.output.mkdir(parents=True)
    files = common.shards(given.input)
    documents = common.count(files)
    filters = dict(common.filters()) if given.work == "filters" else GOPHER
    started = time.monotonic()
    curate = Curate(
        sources=[Source(path=str(given.input), id_field="id")],
        stages=["UnicodeReformatter", "filters"],
        modifiers={"UnicodeReformatter": {"explain": False}},
        filters=filters,
        memory_mb=1024,
    )
    driver = PoolDriver(given.workers)

    def run(work: FolderWork, name: str, tasks: list[list[str]]) -> list[Path]:
        folder = given.output / name
        folder.mkdir()
        targets = [folder / f"{number:05d}" for number in range(len(tasks))]
        made = [
            FileGroupTask(dataset_name="d", data=[*t, str(target)])
            for t, target in zip(tasks, targets, strict=True)
        ]
        for _ in driver.run(work, made):
            pass
        return targets

    plan = reading.groups(curate)
    path = given.output / "groups.json"
    reading.write_plan(plan, path)
    work = reading.ReadGroup(path, curate.sources, curate.max_record_mb << 20)
    raw = reading.account(run(work, "raw", [[str(number)] for number in range(len(plan))]))
    names = passes.passes(curate)[0].names
    whole = "near-duplicates" if given.work == "dedup" else None
    work = ShardWork(passes.build(names, curate), passes.measures(whole, curate), False)
    shards = run(work, "pass", [[str(shard)] for shard in raw.shards])
    if whole is not None:
        found = given.output / "found"
        passes.find_duplicates(whole, shards, curate, found, given.output / "scratch", lambda *_: None)
        work = ShardWork([passes.removal(whole, found)], [], False)
        shards = run(work, "kept", [[str(shard)] for shard in shards])
    seconds = time.monotonic() - started
    lines = [shard / DOCUMENTS for shard in shards]
    common.say("nemo-lifecycle", pipeline.__version__, documents, lines, seconds)


# Beside datatrove: its Gopher filters' decisions in Curator's, as near as they come.
GOPHER = {
    "WordCountFilter": {"min_words": 5, "max_words": 100000},
    "MeanWordLengthFilter": {"min_mean_word_length": 2, "max_mean_word_length": 14},
    "SymbolsToWordsFilter": {"max_symbol_to_word_ratio": 1.0},
    "BulletsFilter": {"max_bullet_lines_ratio": 0.9},
    "EllipsisFilter": {"max_num_lines_ending_with_ellipsis_ratio": 0.5},
    "WordsWithoutAlphabetsFilter": {"min_words_with_alphabets": 0.5},
    "RepeatedLinesFilter": {"max_repeated_line_fraction": 0.7},
    "RepeatedParagraphsFilter": {"max_repeated_paragraphs_ratio": 0.7},
    "RepeatedLinesByCharFilter": {"max_repeated_lines_char_ratio": 0.7},
    "RepeatedParagraphsByCharFilter": {"max_repeated_paragraphs_char_ratio": 0.7},
    "RepeatingTopNGramsFilter/2": {"n": 2, "max_repeating_ngram_ratio": 0.4},
    "RepeatingTopNGramsFilter/3": {"n": 3, "max_repeating_ngram_ratio": 0.4},
    "RepeatingTopNGramsFilter/4": {"n": 4, "max_repeating_ngram_ratio": 0.4},
    **{
        f"RepeatingDuplicateNGramsFilter/{n}": {"n": n, "max_repeating_duplicate_ngram_ratio": 0.4}
        for n in range(5, 11)
    },
}

if __name__ == "__main__":
    main()
