"""The job for Slurm: read by bash and by a real Slurm, and its order of starting and ending."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.serving import cluster
from tests.deploy.conftest import DIGEST, SETS, laid, values
from tests.launch.cluster import Cluster

ROOT = cluster.ROOT


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Slurm of two nodes with two (fake) GPUs each."""
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def script(folder: Path, chosen: dict[str, Any]) -> Path:
    file = folder / "serve.sbatch"
    file.write_text(cluster.slurm_script(chosen))
    return file


@pytest.mark.parametrize("name", SETS)
def test_bash_reads_it(tmp_path: Path, name: str) -> None:
    subprocess.run(["bash", "-n", str(script(tmp_path, SETS[name]))], check=True)


@pytest.mark.parametrize(
    ("settings", "gpus", "nodes"),
    [
        ({}, 2, "fakenode0"),
        ({"tensor": 2}, 2, "fakenode0"),
        ({"tensor": 2, "pipeline": 2}, 2, "fakenode[0-1]"),
        ({"target": "vllm", "tensor": 2}, 2, "fakenode0"),
        ({"tensor": 4, "pipeline": 4}, 4, None),
    ],
)
def test_slurm_takes_it(
    tmp_path: Path, slurm: Cluster, settings: dict[str, Any], gpus: int, nodes: str | None
) -> None:
    """``sbatch --test-only``: options, nodes and GPUs are looked at, and nothing is queued."""
    chosen = laid(values(gpus, **settings), slurm={"partition": "main", "time": "01:00:00"})
    done = subprocess.run(
        ["sbatch", "--test-only", str(script(tmp_path, chosen))],
        env={**os.environ, **slurm.environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if nodes is None:
        assert done.returncode != 0, "four nodes of four GPUs are more than there are"
    else:
        assert done.returncode == 0, done.stderr
        assert f"on nodes {nodes} in partition main" in done.stderr, done.stderr


def test_each_engine_is_started_as_it_starts_its_processes(tmp_path: Path) -> None:
    two = script(tmp_path, SETS["two-nodes"]).read_text()
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=8\n#SBATCH --gpus-per-node=8\n" in two
    assert "bash /etc/lifecycle/triton.sh rank &" in two
    assert f"--container-image='nvcr.io#nvidia/tritonserver@{DIGEST}'" in two
    tagged = script(tmp_path, SETS["tags"]).read_text()
    assert "--container-image='nvcr.io#nvidia/tritonserver:26.07-trtllm-python-py3'" in tagged
    vllm = script(tmp_path, SETS["vllm"]).read_text()
    assert "#SBATCH --nodes=1\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=4\n" in vllm
    assert "bash /etc/lifecycle/triton.sh alone &" in vllm
    assert "#SBATCH --signal=B:TERM@120\n" in two, "drain_s, and Triton's own end"


SRUN = """#!/bin/bash
printf '%s\\n' "$@" >"$TOLD/srun"
trap 'echo triton ends >>"$TOLD/order"; exit 0' TERM
touch "$TOLD/triton"
while :; do sleep 0.05; done
"""
PYTHON = """#!/bin/bash
printf '%s\\n' "$@" >"$TOLD/python"
[ -z "$BROKEN" ] || { until [ -e "$TOLD/triton" ]; do sleep 0.05; done; exit 2; }
trap 'sleep 0.3; echo gateway ends >>"$TOLD/order"; exit 0' TERM
touch "$TOLD/gateway"
while :; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Any]:
    """Start the job's script as Slurm would, with programs in place of srun and the gateway that tell what they are
    told; the script alone is tried."""
    text = cluster.slurm_script(SETS["two-nodes"])
    file = tmp_path / "serve.sbatch"
    file.write_text(text)
    programs = {tmp_path / "bin" / "srun": SRUN, tmp_path / "gateway" / "bin" / "python": PYTHON}
    for path, program in programs.items():
        path.parent.mkdir(parents=True)
        path.write_text(program)
        path.chmod(0o755)
    started: list[subprocess.Popen[str]] = []

    def start(broken: str = "") -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
            "TOLD": str(tmp_path),
            "BROKEN": broken,
            "LIFECYCLE_VENVS": str(tmp_path),
            "SLURM_JOB_ID": "7",
        }
        started.append(subprocess.Popen(["bash", str(file)], env=environment, cwd=ROOT, text=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()


def test_the_gateway_ends_before_triton(tmp_path: Path, job: Any) -> None:
    process = job()
    deadline = time.monotonic() + 10
    while not ((tmp_path / "triton").exists() and (tmp_path / "gateway").exists()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0
    assert (tmp_path / "order").read_text() == "gateway ends\ntriton ends\n"
    words = (tmp_path / "srun").read_text().splitlines()
    assert "--mpi=pmix" in words
    mounts = f"/models here/repository:/models:ro,{ROOT}/deploy/helm/lifecycle/files:/etc/lifecycle:ro"
    assert f"--container-mounts={mounts}" in words
    assert words[-3:] == ["bash", "/etc/lifecycle/triton.sh", "rank"]
    told = (tmp_path / "python").read_text().splitlines()
    assert told == ["-m", "pipeline.gateway", "/served/here/gateway-slurm.json"]


def test_a_gateway_that_cannot_start_ends_the_job(tmp_path: Path, job: Any) -> None:
    process = job(broken="yes")
    assert process.wait(10) == 2
    assert "triton ends" in (tmp_path / "order").read_text()
