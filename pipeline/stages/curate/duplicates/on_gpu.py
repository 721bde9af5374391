"""Near-duplicates by NeMo Curator's own workflow on NVIDIA GPUs (cuDF, cuGraph, Ray).

Curator hashes shingles of characters, puts documents that share a whole band of their
signatures into one bucket, and takes the connected components of the buckets; signatures
are not compared again, so ``near_duplicates.threshold`` plays no part.  Its own last stage
keeps an arbitrary document of a component; here the components are read, and the
recipe's ``which`` decides as it does on the CPU.

Not executed here: the workflow needs a GPU.  What is read of its results is tested with
files in its formats.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from nemo_curator.stages.deduplication.id_generator import CURATOR_DEDUP_ID_STR, IdGeneratorBase
from nemo_curator.tasks import FileGroupTask

from pipeline.schema import NearDuplicates
from pipeline.stages.curate.shards import DOCUMENTS
from pipeline.stages.step import InputError

COMPONENTS, IDS = "ConnectedComponentsStage", "fuzzy_id_generator.json"
GROUP = "_duplicate_group_id"  # nemo_curator.stages.deduplication.fuzzy.utils, which itself needs cuDF


def require() -> None:
    """Raise :class:`InputError` where the workflow cannot run."""
    import torch

    missing = [] if torch.cuda.is_available() else ["an NVIDIA GPU"]
    missing += [name for name in ("cudf", "pylibcugraph", "rapidsmpf") if find_spec(name) is None]
    if missing:
        raise InputError(
            f"curate.near_duplicates.engine: curator-gpu needs {' and '.join(missing)}, not found here (RAPIDS "
            "comes with nemo-curator[deduplication_cuda12]). Use engine: rensa, which needs no GPU"
        )


def labels(shards: list[Path], starts: Any, near: NearDuplicates, scratch: Path) -> Any:
    """For each document of the shards the place of its cluster's first."""
    from nemo_curator.stages.deduplication.fuzzy.workflow import FuzzyDeduplicationWorkflow

    cache, output = scratch / "cache", scratch / "output"
    for folder in (cache, output):
        folder.mkdir(parents=True, exist_ok=True)
    workflow = FuzzyDeduplicationWorkflow(
        cache_path=str(cache),
        output_path=str(output),
        input_filetype="jsonl",
        text_field="text",
        char_ngrams=near.char_ngrams,
        num_bands=near.bands,
        minhashes_per_band=near.permutations // near.bands,
        bands_per_iteration=min(5, near.bands),
    )
    tasks = [FileGroupTask(dataset_name="documents", data=[str(shard / DOCUMENTS)]) for shard in shards]
    workflow.run(initial_tasks=tasks)
    return read_labels(shards, starts, cache / COMPONENTS, output / IDS)


def read_labels(shards: list[Path], starts: Any, components: Path, ids: Path) -> Any:
    """The workflow's components as labels; a document in none is its own cluster.

    Curator numbers the documents of each file in a row, from a number that depends on when
    the file was read; its register says which.
    """
    found = np.arange(int(starts[-1]), dtype=np.int64)
    files = sorted(components.glob("*.parquet")) if components.is_dir() else []
    if not files:
        return found  # no two documents shared a bucket
    register = IdGeneratorBase.from_disk(str(ids))
    firsts = [register.get_batch_range([str(shard / DOCUMENTS)], None)[0] for shard in shards]
    by_first = np.argsort(firsts)
    ordered = np.asarray(firsts)[by_first]
    tables = [pq.read_table(file, columns=[CURATOR_DEDUP_ID_STR, GROUP]) for file in files]
    identifiers, groups = (
        np.concatenate([table.column(name).to_numpy() for table in tables])
        for name in (CURATOR_DEDUP_ID_STR, GROUP)
    )
    owner = np.searchsorted(ordered, identifiers, side="right") - 1
    places = np.asarray(starts)[by_first[owner]] + identifiers - ordered[owner]
    _, group = np.unique(groups, return_inverse=True)
    leaders = np.full(int(group.max()) + 1, len(found), dtype=np.int64)
    np.minimum.at(leaders, group, places)
    found[places] = leaders[group]
    return found
