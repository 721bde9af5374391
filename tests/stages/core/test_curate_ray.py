"""Curation by Curator's executor on a Ray cluster of two nodes, killed on the way.

The two nodes are Ray nodes of their own on this machine, reached at an address as a
cluster of machines would be.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import events, start, write_job

from pipeline import schema
from pipeline.stages.curate.harvest import package_sources, read_docstrings


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster of two nodes with one core each."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        made.add_node(num_cpus=1)
        yield str(made.address)
    finally:
        made.shutdown()


@pytest.fixture(scope="module")
def curate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Eight sources of documents with repeats among them, so that there are eight shards to work on."""
    folder = tmp_path_factory.mktemp("corpus")
    docs = [d for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    for number in range(8):
        rows = [*docs[100 * number : 100 * number + 100], *docs[:5]]
        lines = (json.dumps({"text": d["text"], "title": d["name"]}) + "\n" for d in rows)
        (folder / f"{number}.jsonl").write_text("".join(lines))
    return {
        "sources": [schema.Source(path=str(path)) for path in sorted(folder.iterdir())],
        "stages": ["UnicodeReformatter", "WordCountFilter", "redact", "exact-duplicates"],
        "filters": {"WordCountFilter": {"min_words": 5}},
        "pairs": False,
    }


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def ray_job(folder: Path, curate: dict[str, Any], address: str) -> Path:
    job = write_job("curate", folder, curate=curate)
    job.write_text(json.dumps({**json.loads(job.read_text()), "extra": {"ray": address}}))
    return job


def test_killed_on_a_cluster_it_goes_on_shard_by_shard(
    tmp_path: Path, curate: dict[str, Any], cluster: str, run_stage: Callable[..., Path]
) -> None:
    made = tree(run_stage("curate", tmp_path / "pool", curate=curate) / "output")
    job = ray_job(tmp_path / "w", curate, cluster)
    process = start(job)
    state = tmp_path / "w" / "state"
    for _ in range(6000):
        finished = list((state / "pass-0").glob("0*")) if (state / "pass-0").is_dir() else []
        if finished or process.poll() is not None:
            break
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    time.sleep(1)
    kept = {path: path.stat().st_ino for name in ("raw", "pass-0") for path in (state / name).glob("0*")}
    assert len(kept) >= 9  # all raw shards, and some of the first pass
    process = start(job)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert {path: path.stat().st_ino for path in kept} == kept
    assert tree(tmp_path / "w" / "output") == made


def test_no_cluster_at_the_address_is_told(tmp_path: Path, curate: dict[str, Any]) -> None:
    process = start(ray_job(tmp_path / "w", curate, "127.0.0.1:9"))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    said = events(tmp_path / "w", "error")[0]["text"]
    assert "no Ray cluster answers at 127.0.0.1:9" in said
    assert "Traceback" not in output


def test_a_cluster_of_ones_own_ends_with_the_step(tmp_path: Path, curate: dict[str, Any]) -> None:
    before = daemons()
    process = start(ray_job(tmp_path / "w", curate, "local"))
    started: set[int] = set()
    while len(started) < 2 and process.poll() is None:
        started = daemons() - before
        time.sleep(0.1)
    process.kill()
    output, _ = process.communicate(timeout=30)
    assert len(started) >= 2, output  # and processes that these start
    for _ in range(300):
        if not started & daemons():
            break
        time.sleep(0.1)
    assert not started & daemons()


def daemons() -> set[int]:
    """Ray's own processes on this machine."""
    return {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] in ("gcs_server", "raylet")}
