"""Sending a chain to Kubernetes, asking what became of it, and taking it back.

Runs in the ``launch`` toolchain, with the kubeconfig of whoever calls (``KUBECONFIG``), or in
a pod with its service account.  Every manifest is held to Kubernetes' published schemas
before it is shown or sent.  Not executed on a cluster here: the tests talk to a server of
their own that speaks the API.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.launch import manifests, trainjob
from pipeline.launch.api import connected
from pipeline.launch.orders import Job, Order, StepOrder, read_jobs
from pipeline.launch.status import MEANINGS, JobStatus, gone, read_seen, write_seen

SCHEMAS = "1.31"  # the first in which all that a Job uses here is stable
TAIL_LINES = 4


def send(order: Order, folder: Path, dry: bool) -> list[Job]:
    """Make the Job, hold it to the schema and unless ``dry`` send it; returns its steps.

    ``folder`` is not used: a pod sees another disk.  Raises :class:`UserError` for what the
    cluster refuses, in its words.
    """
    if _cluster(order).runtime:
        return trainjob.send(order, folder, dry)
    manifest = manifests.job(order)
    check(manifest)
    text = manifests.text_of(manifest)
    if not dry:
        with connected(_cluster(order).context) as (batch, _):
            batch.create_namespaced_job(manifest["metadata"]["namespace"], manifest)
    return [_sent(order, step, "" if dry else manifest["metadata"]["name"], text) for step in order.steps]


def check(manifest: dict[str, Any]) -> None:
    """Hold a manifest to the published schema, unknown fields included."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(manifest, SCHEMAS, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        raise UserError(f"Kubernetes has no such {manifest['kind']}: {where}: {error.message}") from None


def look(order: Order, folder: Path) -> None:
    """Write down what the cluster says of the steps of a submission."""
    cluster = _cluster(order)
    if cluster.runtime:
        trainjob.look(order, folder)
        return
    jobs = read_jobs(folder)
    seen = read_seen(folder)
    with connected(_cluster(order).context) as (batch, core):
        from kubernetes.client.exceptions import ApiException

        try:
            job = batch.read_namespaced_job(jobs[0].id, cluster.namespace)
        except ApiException as error:
            if error.status != 404:
                raise
            write_seen(folder, [gone(each, seen.get(each.stage)) for each in jobs])
            return
        pods = core.list_namespaced_pod(cluster.namespace, label_selector=f"job-name={jobs[0].id}").items
        pods.sort(key=lambda pod: pod.metadata.creation_timestamp)
        pod = pods[-1] if pods else None
        found: list[JobStatus] = []
        for each in jobs:
            status = _step(each, job, pod, found, cluster.namespace)
            if status.state == "FAILED" and pod is not None:
                status = replace(status, said=_last_lines(core, pod, cluster.namespace, each.stage))
            found.append(replace(status, restarts=max(0, len(pods) - 1)))
    write_seen(folder, found)


def cancel(order: Order, folder: Path) -> None:
    """Delete the Job of a submission; its pod is given the grace period to write a checkpoint."""
    jobs = read_jobs(folder)
    cluster = _cluster(order)
    with connected(cluster.context) as (batch, _):
        from kubernetes.client.exceptions import ApiException

        try:
            if cluster.runtime:
                trainjob.delete(jobs[0].id, cluster.namespace)
            else:
                batch.delete_namespaced_job(jobs[0].id, cluster.namespace, propagation_policy="Background")
        except ApiException as error:
            if error.status != 404:
                raise
    seen = read_seen(folder)
    over = ("COMPLETED", "FAILED")
    kept = [seen.get(job.stage) or JobStatus(job.stage, job.id, "PENDING") for job in jobs]
    write_seen(
        folder,
        [each if each.state in over else replace(each, state="CANCELLED", reason="") for each in kept],
    )


def _sent(order: Order, step: StepOrder, job_name: str, text: str) -> Job:
    last = step.stage == order.steps[-1].stage
    before = [each.stage for each in order.steps]
    after = before[: before.index(step.stage)][-1:]
    # The text once: the steps are one object.
    return Job(step.stage, job_name, text if last else "", "", after)


def _step(job: Job, whole: Any, pod: Any, before: list[JobStatus], namespace: str) -> JobStatus:
    """What one container's state says of its step."""
    command = f"kubectl logs -n {namespace} job/{job.id} -c {job.stage}"
    status = JobStatus(job.stage, job.id, "PENDING", log=command)
    conditions = {each.type: each for each in (whole.status.conditions or []) if each.status == "True"}
    failed = next((each for each in before if each.state in ("FAILED", "CANCELLED")), None)
    if pod is None:
        over = conditions.get("Failed")
        if over:
            return replace(status, state="CANCELLED", reason=over.message or over.reason or "")
        return replace(status, reason="suspended" if whole.spec.suspend else "no pod yet")
    told = {each.name: each for each in (pod.status.init_container_statuses or [])}
    told |= {each.name: each for each in (pod.status.container_statuses or [])}
    state = told[job.stage].state if job.stage in told else None
    if state and state.terminated:
        code = state.terminated.exit_code
        if code == 0:
            return replace(status, state="COMPLETED", host=pod.spec.node_name or "", exit_status=0)
        why = f"exit status {code}: {MEANINGS.get(code, state.terminated.reason or 'see its log')}"
        return replace(status, state="FAILED", reason=why, host=pod.spec.node_name or "", exit_status=code)
    if state and state.running:
        return replace(status, state="RUNNING", host=pod.spec.node_name or "")
    if failed:
        return replace(
            status, state="CANCELLED", reason=f"never started: {failed.stage} did not end well", log=""
        )
    if before and before[-1].state != "COMPLETED":
        return replace(status, reason=f"waits for {job.after[0]}", log="")
    return replace(status, reason=_why_waiting(pod, state), log="")


def _why_waiting(pod: Any, state: Any) -> str:
    for condition in pod.status.conditions or []:
        if condition.type == "PodScheduled" and condition.status == "False":
            return str(condition.message or condition.reason)
    if state and state.waiting and state.waiting.reason not in (None, "PodInitializing"):
        return f"{state.waiting.reason}: {state.waiting.message or ''}".rstrip(": ")
    return "is being set up"


def _last_lines(core: Any, pod: Any, namespace: str, stage: str) -> list[str]:
    from kubernetes.client.exceptions import ApiException

    try:
        text = core.read_namespaced_pod_log(
            pod.metadata.name, namespace, container=stage, tail_lines=TAIL_LINES
        )
    except ApiException:
        return []
    return str(text).splitlines()[-TAIL_LINES:]


def _cluster(order: Order) -> schema.Kubernetes:
    site: schema.Site = schema.from_plain(schema.Site, order.site)
    return site.kubernetes
