"""data-juicer's equivalents, as near as its operators come; no operator that wants a model.

Its repetition filters count characters and words by other rules than Gopher's; signatures
of 128 permutations over 5-word shingles at a threshold of 0.8, as ours.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from benchmarks.sides import common

RECIPE = """
dataset_path: {corpus}
export_path: {out}/kept.jsonl
np: {workers}
text_keys: text
open_tracer: false
use_cache: false
process:
  - fix_unicode_mapper: {{}}
  - words_num_filter: {{min_num: 5, max_num: 100000, tokenization: false}}
  - average_line_length_filter: {{min_len: 1, max_len: 100000}}
  - alphanumeric_filter: {{tokenization: false, min_ratio: 0.4}}
  - special_characters_filter: {{max_ratio: 0.6}}
  - character_repetition_filter: {{rep_len: 10, max_ratio: 0.5}}
  - word_repetition_filter: {{tokenization: false, rep_len: 5, max_ratio: 0.4}}
  - maximum_line_length_filter: {{min_len: 1, max_len: 1000000}}
{dedup}
"""
DEDUP = """  - document_minhash_deduplicator:
      {tokenization: space, window_size: 5, lowercase: true, num_permutations: 128, jaccard_threshold: 0.8,
       num_bands: 16, num_rows_per_band: 8}
"""


def main() -> None:
    given = common.arguments()
    shutil.rmtree(given.output, ignore_errors=True)
    given.output.mkdir(parents=True)
    files = common.shards(given.input)
    documents = common.count(files)
    corpus = given.output / "corpus.jsonl"  # it takes one file
    with open(corpus, "wb") as joined:
        for file in files:
            joined.write(file.read_bytes())
    recipe = given.output / "recipe.yaml"
    dedup = DEDUP if given.work == "dedup" else ""
    recipe.write_text(RECIPE.format(corpus=corpus, out=given.output, workers=given.workers, dedup=dedup))
    started = time.monotonic()
    command = [str(Path(sys.executable).parent / "dj-process"), "--config", str(recipe)]
    subprocess.run(command, check=True, stdout=sys.stderr, stderr=sys.stderr)
    seconds = time.monotonic() - started
    common.say("data-juicer", version("py-data-juicer"), documents, [given.output / "kept.jsonl"], seconds)


if __name__ == "__main__":
    main()
