"""One training step over two machines of a real Slurm: the same weights, told to stop or not."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.launch.orders import read_jobs, submissions
from pipeline.launch.status import JobStatus, jobs_of
from pipeline.runner.store import damage, read_artifact
from pipeline.toolchains import ROOT, Toolchain
from tests.launch.cluster import Cluster

WAIT_S = 240.0
RECIPE: dict[str, Any] = {
    "stages": ["curate", "pretrain"],
    "model": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "vocab_size": 400,
        "context": 64,
    },
    "pretrain": {
        "max_steps": 60,
        "global_batch_size": 8,
        "micro_batch_size": 4,
        "warmup_steps": 2,
        "checkpoint_every": 5,
        "precision": "fp32",
        "parallel": {"strategy": "fsdp2"},
    },
    "launch": {"processes": 1, "nodes": 2},
}


class Chain:
    """The command line over the recipe, at home or on the cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        documents = [
            {"text": " ".join(f"word{(n * k) % 37} follows" for k in range(40))} for n in range(1, 400)
        ]
        (folder / "documents.jsonl").write_text("".join(json.dumps(each) + "\n" for each in documents))
        sources = [{"kind": "jsonl", "path": str(folder / "documents.jsonl")}]
        curate = {"sources": sources, "stages": [], "pairs": False}
        (folder / "two.yaml").write_text(yaml.safe_dump({**RECIPE, "curate": curate}))
        slurm = {"time": "00:20:00", "checkpoint_s": 60, "cpus_per_task": 1}
        site = {"name": "tests", "kind": "slurm", "min_free_gb": 0.0, "grace_s": 60.0, "slurm": slurm}
        (folder / "site.yaml").write_text(yaml.safe_dump(site))

    def __call__(self, verb: str, *words: str, settings: str = "") -> str:
        command = [str(Toolchain("controller").python), "-m", "pipeline", verb, str(self.folder / "two.yaml")]
        done = subprocess.run(
            [*command, *words, "--set", settings, "--runs", str(self.runs), "--plain"],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def weights(self) -> str:
        """The digest of the published weights."""
        latest = (self.runs / "two" / "pretrain" / "latest").resolve()
        artifact = read_artifact(latest)
        assert artifact is not None
        assert not damage(latest, deep=True)
        assert artifact.manifest["metrics"]["processes"] == 2
        return str(artifact.manifest["files"]["model/model.safetensors"]["sha256"])

    def jobs(self) -> dict[str, JobStatus]:
        return {job.stage: job for job in jobs_of(submissions(self.runs / "two")[-1])}

    def until(self, holds: Any) -> None:
        deadline = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.3)

    def told(self) -> str:
        """Everything that the jobs said, for a failure's message."""
        return "\n".join(
            job.state + " " + Path(job.log).read_text() for job in self.jobs().values() if job.log
        )

    def processes(self, words: str) -> list[int]:
        """The processes of this chain's jobs with these words in their command."""
        found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False)
        mine = f"LIFECYCLE_MUSTER={self.runs}/".encode()
        return [int(pid) for pid in found.stdout.split() if mine in Path(f"/proc/{pid}/environ").read_bytes()]

    def seals(self) -> str:
        return "".join(path.read_text() for path in (self.runs / "two").glob("pretrain/.work/*/seals.jsonl"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    made = Chain(tmp_path_factory.mktemp("nodes"))
    made("curate")
    return made


@pytest.fixture(scope="module")
def at_home(chain: Chain) -> str:
    """The weights of two processes on one machine."""
    chain("pretrain", settings="launch.processes=2 launch.nodes=1")
    found = chain.weights()
    subprocess.run(["chmod", "-R", "u+w", str(chain.runs / "two" / "pretrain")], check=True)
    subprocess.run(["rm", "-r", str(chain.runs / "two" / "pretrain")], check=True)
    return found


def test_two_machines_train_what_two_processes_do_and_go_on_after_a_stop(
    cluster: Cluster, chain: Chain, at_home: str
) -> None:
    site = ("--site", str(chain.folder / "site.yaml"))
    shown = chain("run", "--dry-run", *site)
    assert "#SBATCH --nodes=2" in shown
    assert '[ "$SLURM_PROCID" = 0 ] ||' in shown
    chain("run", *site)
    job = read_jobs(submissions(chain.runs / "two")[-1])[-1]
    assert job.stage == "pretrain"
    chain.until(lambda: '"state/checkpoints/' in chain.seals())
    details = cluster("scontrol", "show", "job", job.id, "--oneliner")
    assert "NumNodes=2" in details
    cluster("scancel", "--signal=TERM", job.id)  # as at the end of its time
    chain.until(lambda: (submissions(chain.runs / "two")[-1] / "ends" / "pretrain.0").exists())
    ended = (submissions(chain.runs / "two")[-1] / "ends" / "pretrain.0").read_text()
    assert ended.startswith("143 "), chain.told()
    chain.until(lambda: not any(each.live for each in chain.jobs().values()))
    assert chain.jobs()["pretrain"].state == "COMPLETED", chain.told()
    assert chain.weights() == at_home
    artifact = read_artifact((chain.runs / "two" / "pretrain" / "latest").resolve())
    assert artifact is not None
    assert len(artifact.manifest["attempts"]) == 2
    assert not chain.processes("pipeline.launch.node"), "a machine waits that nobody will call"


def test_a_machine_that_is_lost_ends_the_step_which_can_go_on(cluster: Cluster, chain: Chain) -> None:
    site = ("--site", str(chain.folder / "site.yaml"))
    chain("pretrain", *site, settings="pretrain.seed=5")
    chain.until(lambda: '"state/checkpoints/' in chain.seals())
    found = chain.processes("automodel.rank join")
    assert found
    for pid in found:
        os.kill(pid, 9)
    chain.until(lambda: not any(each.live for each in chain.jobs().values()))
    assert chain.jobs()["pretrain"].state == "FAILED"
    assert "goes on" in chain("plan", settings="pretrain.seed=5")
    chain("pretrain", settings="pretrain.seed=5 launch.processes=2 launch.nodes=1")
    assert chain.weights()
