"""A chain as one TrainJob of Kubeflow Trainer, made by NeMo-Run's ``KubeflowExecutor``.

For clusters whose queues and quotas know TrainJobs (``site.kubernetes.runtime``).  NeMo-Run
neither looks how a TrainJob ended before it starts the next, nor leaves one alone that has
the name of its own; so the chain is one TrainJob, in which the controller brings the last
step and what it rests on up to date, in order, and stops where a step fails.  NeMo-Run's
executor makes the manifest; creating it and asking for its state are ours.

The API is Trainer 2.1's, which has ``podTemplateOverrides``; 2.2 has another.  Not executed on
a cluster here.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pipeline import schema, strict_json
from pipeline.errors import UserError
from pipeline.launch import manifests
from pipeline.launch.api import connected
from pipeline.launch.orders import Job, Order, read_jobs
from pipeline.launch.status import JobStatus, gone, read_seen, write_seen

GROUP, VERSION, PLURAL = "trainer.kubeflow.org", "v1alpha1", "trainjobs"
CONTAINER = "node"  # of Kubeflow's torch runtimes; NeMo-Run mounts volumes into it
ENDS = {"Complete": "COMPLETED", "Failed": "FAILED", "Suspended": "SUSPENDED"}
NOWHERE = """apiVersion: v1
kind: Config
clusters: [{name: none, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: none, user: {}}]
contexts: [{name: none, context: {cluster: none, user: none}}]
current-context: none
"""


def send(order: Order, folder: Path, dry: bool) -> list[Job]:
    """Make the TrainJob, hold it to the API's own models and unless ``dry`` create it."""
    if dry:  # NeMo-Run's executor wants a kubeconfig even where only the text is wanted
        (folder / "kubeconfig").write_text(NOWHERE, encoding="utf-8")
        os.environ["KUBECONFIG"] = str(folder / "kubeconfig")
    cluster = _cluster(order)
    last = order.steps[-1]
    with connected(None if dry else cluster.context):
        manifest = body(order)
        check(manifest)
        if not dry:
            from kubernetes import client

            client.CustomObjectsApi().create_namespaced_custom_object(
                GROUP, VERSION, cluster.namespace, PLURAL, manifest
            )
    return [Job(last.stage, "" if dry else manifests.name(order), manifests.text_of(manifest), "", [])]


def body(order: Order) -> dict[str, Any]:
    """The manifest, by NeMo-Run's executor."""
    site: schema.Site = schema.from_plain(schema.Site, order.site)
    cluster = site.kubernetes
    pod = {key: value for key, value in manifests.pod_settings(cluster).items() if value}
    # The API has no working directory.
    command = ["env", "-C", order.cwd, *(word for word in order.steps[-1].command if word != "--only")]
    made: dict[str, Any] = _executor(
        cluster,
        gpus_per_node=cluster.gpus if cluster.gpus and cluster.gpu_resource == "nvidia.com/gpu" else None,
        extra_resource_limits={cluster.gpu_resource: str(cluster.gpus)}
        if cluster.gpus and cluster.gpu_resource != "nvidia.com/gpu"
        else {},
        image=cluster.image,
        cpu_requests=cluster.cpu,
        memory_requests=cluster.memory,
        memory_limits=cluster.memory,
        volumes=manifests.volumes(order, cluster),
        volume_mounts=manifests.mounts(cluster),
        env_list=manifests.environment(order, site),
        labels=manifests.labels(order),
        pod_labels=manifests.labels(order),
        pod_annotations=manifests.notes(order),
        pod_spec_overrides=pod,
    ).get_job_body(manifests.name(order), command)
    return made


def check(manifest: dict[str, Any]) -> None:
    """Hold a TrainJob to Kubeflow's published models; what they do not know is refused."""
    import pydantic
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob

    try:
        known = TrainerV1alpha1TrainJob.from_dict(manifest)
    except pydantic.ValidationError as error:
        raise UserError(f"Kubeflow has no such TrainJob: {error}") from None
    kept = json.loads(strict_json.dumps(known.to_dict(), default=str))
    unknown = list(_lost(manifest, kept, ""))
    if unknown:
        raise UserError(f"Kubeflow's TrainJob has no {', '.join(unknown)}")


def look(order: Order, folder: Path) -> None:
    """Write down what the cluster says of the TrainJob of a submission."""
    cluster = _cluster(order)
    (job,) = read_jobs(folder)
    log = f"kubectl logs -n {cluster.namespace} -l jobset.sigs.k8s.io/jobset-name={job.id} -c {CONTAINER}"
    with connected(cluster.context):
        from kubernetes import client
        from kubernetes.client.exceptions import ApiException

        try:
            told = client.CustomObjectsApi().get_namespaced_custom_object(
                GROUP, VERSION, cluster.namespace, PLURAL, job.id
            )
        except ApiException as error:
            if error.status != 404:
                raise
            write_seen(folder, [gone(job, read_seen(folder).get(job.stage))])
            return
    state, reason = state_of(told.get("status", {}))
    write_seen(folder, [JobStatus(job.stage, job.id, state, reason, log=log)])


def state_of(status: dict[str, Any]) -> tuple[str, str]:
    """State and reason; the conditions are the last word, the counts of pods tell of work under way."""
    for condition in status.get("conditions", []):
        if condition["type"] in ENDS and condition["status"] == "True":
            return ENDS[condition["type"]], str(condition.get("message", ""))
    pods = status.get("jobsStatus", [])
    if any(each.get("active", 0) for each in pods):
        return "RUNNING", "with what it rests on"
    return "PENDING", ""


def delete(name: str, namespace: str) -> None:
    """Delete a TrainJob; the caller is connected."""
    from kubernetes import client

    client.CustomObjectsApi().delete_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, name)


def _executor(cluster: schema.Kubernetes, **settings: Any) -> Any:
    from nemo_run.core.execution.kubeflow import KubeflowExecutor

    return KubeflowExecutor(
        namespace=cluster.namespace, runtime_ref=cluster.runtime, num_nodes=1, nprocs_per_node=1, **settings
    )


def _lost(wanted: Any, kept: Any, where: str) -> Any:
    """The fields of ``wanted`` that ``kept`` does not have, by path."""
    if isinstance(wanted, dict) and isinstance(kept, dict):
        for key, value in wanted.items():
            path = f"{where}.{key}".lstrip(".")
            if key not in kept:
                yield path
            else:
                yield from _lost(value, kept[key], path)
    elif isinstance(wanted, list) and isinstance(kept, list) and len(wanted) == len(kept):
        for index, (one, other) in enumerate(zip(wanted, kept, strict=True)):
            yield from _lost(one, other, f"{where}.{index}")
    elif wanted != kept:
        yield where


def _cluster(order: Order) -> schema.Kubernetes:
    site: schema.Site = schema.from_plain(schema.Site, order.site)
    return site.kubernetes
