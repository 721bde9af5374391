"""The chain as a Job of Kubernetes: the manifest against the published schemas, and its life."""

from __future__ import annotations

import copy
import os

import kubernetes_validate
import pytest

from pipeline.errors import UserError
from pipeline.launch import kubernetes, manifests
from tests import restricted
from tests.launch.api_server import Cluster
from tests.launch.conftest import Light, manifest_of

VERSIONS = ("1.31", "1.34", kubernetes_validate.latest_version())


def test_the_manifest_holds_to_the_published_schemas_and_a_wrong_field_does_not(podded: Light) -> None:
    manifest = manifest_of(podded)
    for version in VERSIONS:
        kubernetes_validate.validate(manifest, version, strict=True)
    kubernetes.check(manifest)

    pod = manifest["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["initContainers"]] == ["curate", "train"]
    assert [each["name"] for each in pod["containers"]] == ["export"]
    curate, train = pod["initContainers"]
    assert "limits" in train["resources"]
    assert train["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": "8"}
    assert curate["resources"]["limits"] == {"memory": "256Gi"}
    assert not restricted.faults(pod)
    assert pod["automountServiceAccountToken"] is False
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {1000}
    secret = {"name": "LIGHT_SECRET", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "LIGHT_SECRET"}}}
    assert secret in train["env"]

    for spoil in (
        lambda spoilt: spoilt["spec"].update(backofLimit=3),
        lambda spoilt: spoilt["spec"]["template"]["spec"]["containers"][0].update(gpus=8),
        lambda spoilt: spoilt["spec"].update(backoffLimit="many"),
        lambda spoilt: spoilt["spec"]["template"]["spec"].pop("containers"),
    ):
        wrong = copy.deepcopy(manifest)
        spoil(wrong)
        with pytest.raises(UserError, match="Kubernetes has no such Job"):
            kubernetes.check(wrong)


def test_a_long_name_stays_one_that_kubernetes_takes(podded: Light) -> None:
    from pipeline.launch.orders import SITE_FILE, Order

    order = Order("a-very-long-name-" * 6, 12, "", "/", {}, {}, [], {SITE_FILE: "x"})
    assert len(manifests.name(order)) <= 63
    assert manifests.name(order).endswith("-12-" + manifests.name(order)[-6:])


def test_a_sent_chain_runs_in_order_goes_on_after_an_eviction_and_tells_its_state(
    pods: Cluster, podded: Light
) -> None:
    status, said = podded("run", "--site", "local", runs=podded.folder / "at-home")
    assert status == 0, said
    os.environ["LIGHT_PACE_S"] = "0.5"
    try:
        said = podded.submit()
        assert "train     job light-1-" in said
        podded.wait(lambda jobs: jobs["train"].state == "RUNNING")
        status, said = podded("run")
        assert status == 2
        assert "light is in the queue already: train (job light-1-" in said
        status, shown = podded("status", "--site", str(podded.folder / "site.yaml"))
        assert status == 0, shown
        assert "waits for train" in shown
        volume = Light(podded.folder / "volume", {})
        volume.wait_for_seal("step_008")
        os.environ["LIGHT_PACE_S"] = "0"
        pods.evict()
    finally:
        del os.environ["LIGHT_PACE_S"]
    jobs = podded.wait_over()
    assert [job.state for job in jobs.values()] == ["COMPLETED"] * 3
    assert jobs["train"].restarts == 1
    assert "went on from step" in pods.pods[1].log("train").read_text()
    assert "up to date" in pods.pods[1].log("curate").read_text()
    assert volume.published() == podded.published(podded.folder / "at-home")


def test_a_failed_step_ends_the_job_and_shows_its_log(pods: Cluster, podded: Light) -> None:
    podded.write_documents({"words": "no text"})
    podded.submit()
    jobs = podded.wait_over()
    assert [job.state for job in jobs.values()] == ["FAILED", "CANCELLED", "CANCELLED"]
    status, shown = podded("status", KUBECONFIG=str(podded.folder / "nowhere"))
    assert status == 0, shown
    assert "as last seen, for now no Kubernetes cluster can be reached" in shown
    assert "never started: curate did not end well" in shown
    status, shown = podded("status")
    assert status == 0, shown
    assert "exit status 1: the step failed" in shown
    assert "never started: curate did not end well" in shown
    assert "The same command tries again" in shown, "the end of its log"
    assert f"kubectl logs -n team job/{jobs['curate'].id} -c curate" in shown


def test_a_cancelled_job_is_gone_and_a_refusal_is_told_in_its_words(pods: Cluster, podded: Light) -> None:
    pods.forbidden = True
    status, said = podded("run")
    assert status == 2
    assert 'Kubernetes refused: jobs.batch is forbidden: User "test" cannot create' in said
    assert not podded.runs.exists()
    pods.forbidden = False
    os.environ["LIGHT_PACE_S"] = "1"
    try:
        podded.submit()
        podded.wait(lambda jobs: jobs["train"].state == "RUNNING")
    finally:
        del os.environ["LIGHT_PACE_S"]
    status, said = podded("cancel")
    assert status == 0, said
    assert "cancelled train" in said
    assert [job.state for job in podded.jobs().values()] == ["COMPLETED", "CANCELLED", "CANCELLED"]
    assert pods.job is None
    assert not pods.pods[-1].is_alive()


def test_without_a_cluster_the_message_says_what_to_set(podded: Light) -> None:
    status, said = podded("run", KUBECONFIG=str(podded.folder / "nowhere"))
    assert status == 2
    assert "no Kubernetes cluster can be reached" in said
    assert "KUBECONFIG" in said
