"""What a LeaderWorkerSet may hold: the API leaderworkerset.x-k8s.io/v1 as its reference describes it, in JSON Schema.

https://lws.sigs.k8s.io/docs/reference/leaderworkerset.v1/ (v0.10).  Unknown fields are refused.  Pod templates are
held to Kubernetes' own schema, which is stricter than the definition that LeaderWorkerSet brings.  With ``LWS_CRD``
naming that definition's file, ``config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml`` of
kubernetes-sigs/lws, objects are held to it as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

COUNT_OR_SHARE = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "pattern": "^[0-9]+%$"}]}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": list(required),
        "properties": properties,
    }


POD = {"type": "object"}  # held to Kubernetes' schema below
SCHEMA = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "leaderworkerset.x-k8s.io/v1"},
    kind={"const": "LeaderWorkerSet"},
    metadata={"type": "object", "required": ["name"]},
    spec=_object(
        ("leaderWorkerTemplate",),
        replicas={"type": "integer", "minimum": 0},
        startupPolicy={"enum": ["LeaderCreated", "LeaderReady"]},
        rolloutStrategy=_object(
            ("type",),
            type={"enum": ["RollingUpdate"]},
            rollingUpdateConfiguration=_object(
                (), partition={"type": "integer"}, maxUnavailable=COUNT_OR_SHARE, maxSurge=COUNT_OR_SHARE
            ),
        ),
        networkConfig=_object(("subdomainPolicy",), subdomainPolicy={"enum": ["Shared", "UniquePerReplica"]}),
        leaderWorkerTemplate=_object(
            ("workerTemplate",),
            leaderTemplate=POD,
            workerTemplate=POD,
            size={"type": "integer", "minimum": 1},
            restartPolicy={"enum": ["RecreateGroupOnPodRestart", "RecreateGroupAfterStart", "None"]},
            subGroupPolicy={"type": "object"},
            volumeClaimTemplates={"type": "array"},
            persistentVolumeClaimRetentionPolicy={"type": "object"},
        ),
    ),
)


def validate(found: dict[str, Any], version: str) -> None:
    """Raise for an object that a cluster with LeaderWorkerSet would refuse; ``version`` is Kubernetes'."""
    jsonschema.validate(found, SCHEMA)
    template = found["spec"]["leaderWorkerTemplate"]
    for name in ("leaderTemplate", "workerTemplate"):
        if name in template:
            pod = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": name},
                "template": template[name],
            }
            kubernetes_validate.validate(pod, version, strict=True)
    if "LWS_CRD" in os.environ:
        jsonschema.validate(found, definition(Path(os.environ["LWS_CRD"])))


def definition(path: Path) -> dict[str, Any]:
    """The JSON Schema inside a CustomResourceDefinition, unknown fields refused as by strict validation."""
    resource = yaml.safe_load(path.read_text(encoding="utf-8"))
    schema: dict[str, Any] = resource["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["metadata"] = {"type": "object"}
    return _closed(schema)


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _closed(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        made.pop("type", None)
    if isinstance(made.get("properties"), dict) and "type" in schema:
        made.setdefault("additionalProperties", False)
    return made
