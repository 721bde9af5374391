"""datatrove's equivalents: ftfy, Gopher's filters, MinHash in four steps.

Signatures of 128 hashes in 16 buckets of 8 over 5-word shingles, as ours; datatrove joins
documents with an equal bucket without comparing further, so it removes more.  Words are
made by its English tokenizer (spaCy), or with ``WORDS=whitespace`` by white space, as
Curator's filters make them.
"""

from __future__ import annotations

import os
import shutil
import time
from importlib.metadata import version
from typing import Any

from benchmarks.sides import common


def main() -> None:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
    from datatrove.pipeline.filters import GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter
    from datatrove.utils.word_tokenizers import WhitespaceTokenizer

    given = common.arguments()
    shutil.rmtree(given.output, ignore_errors=True)
    files = common.shards(given.input)
    documents = common.count(files)
    base, tasks = given.output, len(files)
    words: Any = WhitespaceTokenizer() if os.environ.get("WORDS") == "whitespace" else "eng"
    config = MinhashConfig(n_grams=5, num_buckets=16, hashes_per_bucket=8)
    started = time.monotonic()

    def run(name: str, pipeline: list[Any], tasks: int) -> None:
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=given.workers, logging_dir=str(base / "logs" / name)
        ).run()

    run(
        "filter",
        [
            JsonlReader(str(given.input), glob_pattern="*.jsonl"),
            FTFYFormatter(),
            GopherQualityFilter(
                min_doc_words=5, min_avg_word_length=2, max_avg_word_length=14, max_symbol_word_ratio=1.0,
                max_ellipsis_lines_ratio=0.5, max_non_alpha_words_ratio=0.5, min_stop_words=0, language=words,
            ),
            GopherRepetitionFilter(
                dup_line_frac=0.3, dup_para_frac=0.3, dup_line_char_frac=0.3, dup_para_char_frac=0.3,
                top_n_grams=((2, 0.4), (3, 0.4), (4, 0.4)),
                dup_n_grams=tuple((n, 0.4) for n in range(5, 11)), language=words,
            ),
            JsonlWriter(str(base / "filtered"), compression=None),
        ],
        tasks,
    )  # fmt: skip
    kept = base / "filtered"
    if given.work == "dedup":
        read = JsonlReader(str(base / "filtered"))
        run("sign", [read, MinhashDedupSignature(str(base / "signatures"), config, language=words)], tasks)
        run(
            "buckets",
            [MinhashDedupBuckets(str(base / "signatures"), str(base / "buckets"), config=config)],
            16,
        )
        run("cluster", [MinhashDedupCluster(str(base / "buckets"), str(base / "remove"), config=config)], 1)
        kept = base / "kept"
        run(
            "drop",
            [read, MinhashDedupFilter(str(base / "remove")), JsonlWriter(str(kept), compression=None)],
            tasks,
        )
    seconds = time.monotonic() - started
    tool = "datatrove" + (", words by white space" if not isinstance(words, str) else "")
    common.say(tool, version("datatrove"), documents, sorted(kept.glob("*.jsonl")), seconds)


if __name__ == "__main__":
    main()
