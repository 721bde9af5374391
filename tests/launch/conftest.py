"""A Slurm for the session, and a recipe of light steps with a place of its own for each test."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.launch import kubernetes
from pipeline.launch.orders import read_order, submissions
from pipeline.launch.status import JobStatus, jobs_of, last_seen
from pipeline.runner.store import damage, read_artifact
from pipeline.toolchains import ROOT, Toolchain
from tests.launch import api_server
from tests.launch.cluster import Cluster

WAIT_S = 60.0


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real Slurm, started for the tests and stopped after them."""
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    # NeMo-Run and the status ask the Slurm that the environment names.
    os.environ.update(made.environment)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        del os.environ["SLURM_CONF"]


@dataclass
class Light:
    """The light recipe in a folder, at a site, with runs of its own."""

    folder: Path
    site: dict[str, Any]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def documents(self) -> Path:
        return self.folder / "documents.jsonl"

    def write(self, **slurm: Any) -> None:
        """Write recipe and site; ``slurm`` adds to the site's section."""
        site = {**self.site, "slurm": {**self.site.get("slurm", {}), **slurm}}
        (self.folder / "site.yaml").write_text(yaml.safe_dump(site))
        recipe = {
            "stages": ["curate", "train", "export"],
            "train": {"micro_batch_size": 4},  # eight GPUs at the site of Kubernetes share a batch of 32
            "curate": {"sources": [{"kind": "jsonl", "path": str(self.documents)}]},
        }
        (self.folder / "light.yaml").write_text(yaml.safe_dump(recipe))

    def write_documents(self, *records: dict[str, str]) -> None:
        """Write the source; twelve documents unless others are given."""
        made = records or tuple({"text": f"document {n} " + "word " * n} for n in range(12))
        self.documents.write_text("".join(json.dumps(record) + "\n" for record in made))

    def __call__(
        self, verb: str, *words: str, runs: Path | None = None, **environment: str
    ) -> tuple[int, str]:
        """Run the command line to its end: exit status and everything it said."""
        site = () if "--site" in words else ("--site", str(self.folder / "site.yaml"))
        done = subprocess.run(
            [
                *(str(Toolchain("controller").python), "-m", "tests.launch.light"),
                *(verb, str(self.folder / "light.yaml"), *words, *site, "--runs", str(runs or self.runs)),
            ],
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "200", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=WAIT_S,
            check=False,
        )
        return done.returncode, done.stdout

    def submit(self, **environment: str) -> str:
        """Submit the chain; returns what was said."""
        status, said = self("run", **environment)
        assert status == 0, said
        return said

    @property
    def submission(self) -> Path:
        return submissions(self.runs / "light")[-1]

    def jobs(self) -> dict[str, JobStatus]:
        """The jobs of the last submission, by stage."""
        if self.site["kind"] == "slurm":
            return {job.stage: job for job in jobs_of(self.submission)}
        # In this process; `lifecycle status` pays a second for one of its own each time.
        kubernetes.look(read_order(self.submission), self.submission)
        return {job.stage: job for job in last_seen(self.submission)}

    def wait(self, holds: Callable[[dict[str, JobStatus]], bool]) -> dict[str, JobStatus]:
        """Wait until something holds of the jobs."""
        deadline = time.monotonic() + WAIT_S
        while True:
            jobs = self.jobs()
            if holds(jobs):
                return jobs
            assert time.monotonic() < deadline, jobs
            time.sleep(0.2)

    def wait_over(self) -> dict[str, JobStatus]:
        """Wait until no job waits or runs."""
        return self.wait(lambda jobs: not any(job.live for job in jobs.values()))

    def wait_for_seal(self, piece: str) -> None:
        """Wait until the training step at work has sealed a piece of its state."""
        deadline = time.monotonic() + WAIT_S
        while not any(
            piece in seals.read_text()
            for seals in (self.runs / "light" / "train" / ".work").glob("*/seals.jsonl")
        ):
            assert time.monotonic() < deadline, self.jobs()
            time.sleep(0.05)

    def published(self, runs: Path | None = None) -> dict[str, dict[str, Any]]:
        """Stage to what must be the same wherever it ran."""
        found = {}
        for latest in sorted((runs or self.runs).glob("light/*/latest")):
            artifact = read_artifact(latest.resolve())
            assert artifact is not None
            assert not damage(artifact.path, deep=True)
            kept = ("identity", "parts", "files", "output_digest", "metrics", "curves")
            found[latest.parent.name] = {name: artifact.manifest[name] for name in kept}
        return found


@pytest.fixture
def light(tmp_path: Path) -> Light:
    """The light recipe at a Slurm site."""
    slurm = {"time": "00:10:00", "checkpoint_s": 60}
    site = {"name": "tests", "kind": "slurm", "min_free_gb": 0.0, "grace_s": 5.0, "slurm": slurm}
    made = Light(tmp_path, site)
    made.write()
    made.write_documents()
    return made


@pytest.fixture
def at_home(light: Light, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """What the same recipe publishes on this machine, without a cluster."""
    runs = tmp_path / "at-home"
    status, said = light("run", "--site", "local", runs=runs)
    assert status == 0, said
    return light.published(runs)


@pytest.fixture
def pods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[api_server.Cluster]:
    """The stand-in for a cluster, and the kubeconfig that leads to it."""
    made = api_server.Cluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(made.kubeconfig()))
    # The client has read the variable when it was imported.
    place = "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION"
    monkeypatch.setattr(place, str(made.kubeconfig()))
    yield made
    made.stop()


@pytest.fixture
def podded(tmp_path: Path) -> Light:
    """The light recipe at a Kubernetes site whose claim is a folder here."""
    volume = tmp_path / "volume"
    volume.mkdir()
    site = {
        "name": "tests",
        "kind": "kubernetes",
        "min_free_gb": 0.0,
        "grace_s": 5.0,
        "secrets": ["LIGHT_SECRET"],
        "kubernetes": {
            "namespace": "team",
            "image": "registry.example.com/lifecycle:1",
            "claim": "runs",
            "mount": str(volume),
            "root": str(ROOT),
            "python": str(Toolchain("controller").python),
            "secret": "keys",
            "gpus": 8,
            "cpu": "16",
            "memory": "64Gi",
            "shared_memory": "16Gi",
            "node_selector": ["nvidia.com/gpu.product=H200"],
            "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "pull_secrets": ["registry"],
            "service_account": "trainer",
            "stages": {"curate": {"gpus": 0, "memory": "256Gi"}},
        },
    }
    made = Light(tmp_path, site)
    made.write()
    made.write_documents()
    return made


def manifest_of(light: Light) -> dict[str, Any]:
    status, shown = light("run", "--dry-run")
    assert status == 0, shown
    assert not light.runs.exists(), "a dry run leaves nothing"
    (manifest,) = yaml.safe_load_all(shown)
    assert isinstance(manifest, dict)
    return manifest
