"""A chain as one Job of Kubernetes, as plain data; nothing here talks to a cluster.

Kubernetes has no dependencies between Jobs, and NeMo-Run's executor for it starts the next
one without a look at how the last one ended.  A pod has the order that a chain needs: its
init containers run one after the other, each only when the one before ended with 0, and the
container itself after all of them.  So the chain is one pod, a container a step.

What disturbs the pod (eviction, preemption, a node that goes) brings a new one, in which
finished steps are found done in no time and the interrupted one goes on from its checkpoint
on the volume.  What is the user's to mend (a refused input, a closed gate) ends the Job.

The pod holds to Kubernetes' restricted Pod Security Standard.

The settings travel in the pod's annotations, and are mounted as files from there: one object,
and nothing to clear away after it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import yaml

from pipeline import schema, strict_json
from pipeline.launch.orders import PINNED, SITE_FILE, Order, StepOrder

PREFIX = "nemo-lifecycle.io/"
SETTINGS, WORK, MEMORY = "settings", "work", "shared-memory"
LAST_WORDS_S = 15  # beyond grace_s: the controller's own end
NOT_TO_BE_TRIED_AGAIN = [2, 3]  # exit statuses: the user's mistake, a closed gate
LONGEST_NAME = 63


def job(order: Order) -> dict[str, Any]:
    """The ``batch/v1`` Job that runs the order's steps."""
    site: schema.Site = schema.from_plain(schema.Site, order.site)
    cluster = site.kubernetes
    containers = [container(order, step, site) for step in order.steps]
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # a pod failure policy asks for it
        "terminationGracePeriodSeconds": int(site.grace_s) + LAST_WORDS_S,
        "initContainers": containers[:-1],
        "containers": containers[-1:],
        "volumes": volumes(order, cluster),
        **pod_settings(cluster),
        # Steps ask the cluster for nothing, so they get no way to.
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": cluster.user,
            "runAsGroup": cluster.user,
            "fsGroup": cluster.user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name(order), "namespace": cluster.namespace, "labels": labels(order)},
        "spec": {
            "backoffLimit": cluster.retries,
            "ttlSecondsAfterFinished": cluster.ttl_s,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Ignore",
                        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
                    },
                    {
                        "action": "FailJob",
                        "onExitCodes": {"operator": "In", "values": NOT_TO_BE_TRIED_AGAIN},
                    },
                ]
            },
            "template": {
                "metadata": {"labels": labels(order), "annotations": notes(order)},
                "spec": {key: value for key, value in spec.items() if value not in ([], {}, None)},
            },
        },
    }


def text_of(manifest: dict[str, Any]) -> str:
    """The manifest as YAML."""
    return yaml.dump(manifest, Dumper=_Readable, sort_keys=False, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """YAML with texts of many lines as such."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Readable.add_representer(str, _text)


def name(order: Order) -> str:
    """The Job's name: the recipe's, the submission's number, and a digest against another's runs."""
    digest = hashlib.sha256(strict_json.dumps(order.files, sort_keys=True).encode()).hexdigest()[:6]
    tail = f"-{order.number}-{digest}"
    return f"{order.recipe[: LONGEST_NAME - len(tail)].rstrip('-')}{tail}"


def labels(order: Order) -> dict[str, str]:
    """What the Job and its pods are found by."""
    return {
        "app.kubernetes.io/name": "nemo-lifecycle",
        "app.kubernetes.io/instance": order.recipe[:LONGEST_NAME].rstrip("-"),
    }


def notes(order: Order) -> dict[str, str]:
    """The texts of the recipe and the site, as annotations."""
    return {_note(file): text for file, text in order.files.items()}


def _note(file: str) -> str:
    # A recipe's name may have letters that an annotation's may not.
    return f"{PREFIX}{'site' if file == SITE_FILE else 'recipe'}"


def container(order: Order, step: StepOrder, site: schema.Site) -> dict[str, Any]:
    """The container of one step."""
    cluster = schema.for_stage(site.kubernetes, step.stage)
    made: dict[str, Any] = {
        "name": step.stage,
        "image": cluster.image,
        "command": step.command,
        "workingDir": order.cwd,
        "env": environment(order, site),
        "resources": resources(cluster),
        "volumeMounts": mounts(cluster),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "privileged": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {key: value for key, value in made.items() if value not in ({}, [])}


def environment(order: Order, site: schema.Site) -> list[dict[str, Any]]:
    """Plain variables, and those whose values only the cluster's Secret holds."""
    plain = [{"name": key, "value": value} for key, value in sorted(order.environment.items())]
    secret = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": site.kubernetes.secret, "key": key}}}
        for key in site.secrets
    ]
    return [*plain, *secret]


def resources(cluster: schema.Kubernetes) -> dict[str, Any]:
    """What the scheduler is asked for; memory and GPUs are limits as well."""
    wanted = {"cpu": cluster.cpu, "memory": cluster.memory}
    requests = {key: value for key, value in wanted.items() if value}
    limits = {"memory": cluster.memory} if cluster.memory else {}
    if cluster.gpus:
        # Of an extended resource, requests follow the limits.
        limits[cluster.gpu_resource] = str(cluster.gpus)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def mounts(cluster: schema.Kubernetes) -> list[dict[str, Any]]:
    """The volume with data and runs, the settings, and memory that processes share."""
    made: list[dict[str, Any]] = [
        {"name": WORK, "mountPath": cluster.mount},
        {"name": SETTINGS, "mountPath": PINNED, "readOnly": True},
    ]
    if cluster.shared_memory:
        made.append({"name": MEMORY, "mountPath": "/dev/shm"})
    return made


def volumes(order: Order, cluster: schema.Kubernetes) -> list[dict[str, Any]]:
    """What :func:`mounts` mounts."""
    items = [
        {"path": file, "fieldRef": {"fieldPath": f"metadata.annotations['{_note(file)}']"}}
        for file in order.files
    ]
    made: list[dict[str, Any]] = [
        {"name": WORK, "persistentVolumeClaim": {"claimName": cluster.claim}},
        {"name": SETTINGS, "downwardAPI": {"items": items}},
    ]
    if cluster.shared_memory:
        made.append({"name": MEMORY, "emptyDir": {"medium": "Memory", "sizeLimit": cluster.shared_memory}})
    return made


def pod_settings(cluster: schema.Kubernetes) -> dict[str, Any]:
    """Where the pod may run, and as whom."""
    return {
        "serviceAccountName": cluster.service_account,
        "imagePullSecrets": [{"name": secret} for secret in cluster.pull_secrets],
        "nodeSelector": dict(label.split("=", 1) for label in cluster.node_selector),
        "tolerations": list(cluster.tolerations),
    }
