"""The chain as NeMo-Run's TrainJob: against Kubeflow's published models, created, asked for, deleted."""

from __future__ import annotations

import copy

import pytest
import yaml

from pipeline.errors import UserError
from pipeline.launch import trainjob
from tests.launch.api_server import Cluster
from tests.launch.conftest import Light, manifest_of


@pytest.fixture
def queued(podded: Light) -> Light:
    """The light recipe at a site that asks for TrainJobs."""
    podded.site["kubernetes"]["runtime"] = "torch-distributed"
    podded.write()
    return podded


def test_the_manifest_is_one_that_kubeflow_knows_and_a_wrong_field_is_not(queued: Light) -> None:
    manifest = manifest_of(queued)
    trainjob.check(manifest)
    trainer = manifest["spec"]["trainer"]
    assert trainer["command"][:3] == ["env", "-C", str(queued.folder / "volume")]
    assert "export" in trainer["command"]
    assert "--only" not in trainer["command"], "the chain is one command"
    assert trainer["resourcesPerNode"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "8"}
    (override,) = manifest["spec"]["podTemplateOverrides"]
    annotations = override["metadata"]["annotations"]
    assert yaml.safe_load(annotations["nemo-lifecycle.io/recipe"])["stages"] == ["curate", "train", "export"]
    assert override["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": "H200"}

    for spoil, said in (
        (lambda wrong: wrong["spec"]["trainer"].update(workingDir="/"), "spec.trainer.workingDir"),
        (lambda wrong: wrong["spec"].update(backoffLimit=1), "spec.backoffLimit"),
        (lambda wrong: wrong["spec"]["trainer"].update(numNodes="many"), "no such TrainJob"),
        (lambda wrong: wrong["spec"].pop("runtimeRef"), "no such TrainJob"),
    ):
        wrong = copy.deepcopy(manifest)
        spoil(wrong)
        with pytest.raises(UserError, match=said):
            trainjob.check(wrong)


def test_a_trainjob_is_created_told_of_and_deleted(pods: Cluster, queued: Light) -> None:
    manifest = manifest_of(queued)
    said = queued.submit()
    assert pods.train_job is not None
    assert pods.train_job == manifest, "what the dry run printed"
    assert f"export    job {manifest['metadata']['name']}" in said

    (job,) = queued.jobs().values()
    assert (job.stage, job.state) == ("export", "PENDING")
    for told, state in (
        ({"jobsStatus": [{"name": "node", "active": 0}]}, "PENDING"),
        ({"jobsStatus": [{"name": "node", "active": 1, "failed": 1}]}, "RUNNING"),
        ({"conditions": [{"type": "Failed", "status": "True", "message": "BackoffLimitExceeded"}]}, "FAILED"),
        ({"conditions": [{"type": "Complete", "status": "True"}]}, "COMPLETED"),
    ):
        assert trainjob.state_of(told)[0] == state

    pods.train_job["status"] = {"jobsStatus": [{"name": "node", "active": 1}]}
    assert queued("cancel") == (0, f"cancelled export (job {manifest['metadata']['name']})\n")
    assert pods.train_job is None
