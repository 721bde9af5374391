"""Documents in upper case, shard by shard; LIGHT_CURATE_S delays it."""

from __future__ import annotations

import json
import os
import time

from pipeline.schema import Curate
from pipeline.stages.step import Step, read_jsonl, write_jsonl

SHARD = 4


def run(step: Step) -> None:
    """Each finished shard is sealed; only unfinished ones are made again."""
    source = step.section(Curate).sources[0]
    with open(str(source.path), encoding="utf-8") as handle:
        documents = [json.loads(line) for line in handle]
    shards = [documents[start : start + SHARD] for start in range(0, len(documents), SHARD)]
    time.sleep(float(os.environ.get("LIGHT_CURATE_S", "0")))
    for number, shard in enumerate(shards):
        folder = step.state / "shards" / f"{number:03d}"
        if not folder.exists():
            part = folder.with_suffix(".part")
            write_jsonl(part / "documents.jsonl", [{**each, "text": each["text"].upper()} for each in shard])
            part.rename(folder)
            step.seal(folder)
            step.message(f"made shard {number}")
        step.progress(number + 1, len(shards), "shards", every_s=0)
    made = [
        record
        for number in range(len(shards))
        for record in read_jsonl(step.state / "shards" / f"{number:03d}" / "documents.jsonl")
    ]
    write_jsonl(step.output / "data.jsonl", made)
    step.finish(metrics={"documents": len(made)}, headline=f"{len(made)} documents")
