"""NeMo Curator's own reader, stages, writer and ``RayDataExecutor``; the work ``filters`` only.

Its default executor refuses a machine with two cores, and its duplicate identification
needs a GPU.  One file a partition.
"""

from __future__ import annotations

import shutil
import time
from importlib.metadata import version

from benchmarks.sides import common


def main() -> None:
    import ray
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline
    from nemo_curator.stages.text.filters import ScoreFilter
    from nemo_curator.stages.text.filters.heuristic import string
    from nemo_curator.stages.text.filters.heuristic.repetition import repetition
    from nemo_curator.stages.text.io.reader import JsonlReader
    from nemo_curator.stages.text.io.writer import JsonlWriter
    from nemo_curator.stages.text.modifiers import Modify
    from nemo_curator.stages.text.modifiers.unicode import UnicodeReformatter

    given = common.arguments()
    shutil.rmtree(given.output, ignore_errors=True)
    files = common.shards(given.input)
    documents = common.count(files)
    stages = [
        JsonlReader(file_paths=[str(file) for file in files], files_per_partition=1, fields=["id", "text"]),
        Modify(UnicodeReformatter(explain=False), input_fields="text"),
    ]
    for name, parameters in common.filters():
        cls = getattr(string, name, None) or getattr(repetition, name)
        stages.append(ScoreFilter(cls(**parameters), text_field="text"))
    stages.append(JsonlWriter(path=str(given.output)))
    ray.init(num_cpus=given.workers, include_dashboard=False, log_to_driver=False)
    started = time.monotonic()
    Pipeline(name="benchmark", stages=stages).run(RayDataExecutor())
    seconds = time.monotonic() - started
    common.say(
        "NeMo Curator, RayDataExecutor",
        version("nemo-curator"),
        documents,
        given.output.glob("*.jsonl"),
        seconds,
    )


if __name__ == "__main__":
    main()
