"""Values of several deployments, as an export makes them, and what Helm renders of each."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import helm_python as helm
import pytest
import yaml

from pipeline import schema
from pipeline.serving import cluster
from pipeline.toolchains import Toolchain

DEPLOY = cluster.DEPLOY
CHART = DEPLOY / "helm" / "lifecycle"
IDENTITY = "1f3a" * 16
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
RELEASE = "assistant"


def export(target: str = "trtllm", tensor: int = 1, pipeline: int = 1, **settings: Any) -> schema.Export:
    made = schema.Export(target=target, weights="bf16", **settings)
    made.serving.tensor, made.serving.pipeline = tensor, pipeline
    return made


def values(gpus: int = 8, /, **settings: Any) -> dict[str, Any]:
    made = cluster.values(export(**settings), IDENTITY, schema.Deploy(), gpus)
    made["model"]["claim"] = {"name": "models", "path": "runs/llama-8b/export/1f3a/repository"}
    made["local"] |= {"repository": "/models here/repository", "settings": "/served/here"}
    # As a person has filled them.
    for image in (made["image"], made["gateway"]["image"], made["multinode"].get("image", {})):
        image["digest"] = DIGEST
    made["local"]["digests"] = dict.fromkeys(made["local"]["digests"], DIGEST)
    return made


def laid(under: dict[str, Any], **over: Any) -> dict[str, Any]:
    """Values with others over them, mapping by mapping."""
    made = copy.deepcopy(under)
    for key, value in over.items():
        inner = made.get(key)
        made[key] = (
            laid(inner, **value) if isinstance(inner, dict) and inner and isinstance(value, dict) else value
        )
    return made


CLIENT = {"repository": "public.ecr.aws/aws-cli/aws-cli", "tag": "2.31.0", "digest": DIGEST}
STORE = {"uri": "s3://models/assistant/repository", "image": CLIENT, "secret": "store"}
SETS: dict[str, dict[str, Any]] = {
    "one-gpu": values(),
    "eight-gpus": values(tensor=8),
    "adapters": values(adapters={"french": "a", "terse": "b"}),
    "vllm": values(target="vllm", tensor=4, gpu="H100"),
    "two-nodes": values(tensor=8, pipeline=2),
    "two-nodes-autoscaled": laid(values(tensor=8, pipeline=2), autoscaling={"enabled": True}),
    "object-store": laid(values(), model={"source": "objectStore", "objectStore": STORE}),
    "two-nodes-object-store": laid(
        values(tensor=8, pipeline=2), model={"source": "objectStore", "objectStore": STORE}
    ),
    "tls": laid(values(), gateway={"tlsSecret": "certificate"}),
    "autoscaled": laid(values(), autoscaling={"enabled": True, "maxReplicas": 8, "waiting": 4}),
    "tags": laid(values(), requireDigests=False, image={"digest": ""}, gateway={"image": {"digest": ""}}),
    "everything": laid(
        values(tensor=8, pipeline=4),
        image={"pullSecrets": ["registry"]},
        multinode={"resources": {"rdma/ib": "8"}},
        triton={"environment": {"NCCL_SOCKET_IFNAME": "eth0"}},
        gateway={"tlsSecret": "certificate", "settings": {"limits": {"drain_s": 90, "max_tokens": 512}}},
        autoscaling={"enabled": True, "minReplicas": 2},
        service={"type": "LoadBalancer", "annotations": {"example.com/internal": "true"}},
        serviceAccount={"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}},
        network={
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "chat"}}}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        },
        nodeSelector={"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        affinity={"nodeAffinity": {}},
        priorityClassName="serving",
        podAnnotations={"example.com/owner": "chat"},
    ),
}


@functools.cache
def _render(name: str) -> dict[str, str]:
    return render_values(SETS[name])


def render_values(chosen: dict[str, Any]) -> dict[str, str]:
    with helm.Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(chosen, name=RELEASE, namespace="serving")
    return {Path(path).name: text for path, text in rendered.items()}


@pytest.fixture
def render() -> Callable[[str], dict[str, str]]:
    return _render


def objects(files: dict[str, str]) -> list[dict[str, Any]]:
    """The objects that would be sent to the cluster."""
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    return [each for text in texts for each in yaml.safe_load_all(text) if each]


def of_kind(files: dict[str, str], kind: str) -> list[dict[str, Any]]:
    return [each for each in objects(files) if each["kind"] == kind]


def pods(files: dict[str, str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The pod templates by what they are for."""
    for each in of_kind(files, "Deployment"):
        yield "server", each["spec"]["template"]
    for each in of_kind(files, "LeaderWorkerSet"):
        template = each["spec"]["leaderWorkerTemplate"]
        yield "server", template["leaderTemplate"]
        yield "worker", template["workerTemplate"]


def container(pod: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in pod["spec"]["containers"] if each["name"] == name]
    assert isinstance(found, dict)
    return found


DEBIAN = Toolchain("debian").folder  # programs taken out of Debian's packages, not installed


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker."""
    path = DEBIAN / "usr" / "bin" / "promtool"
    assert path.is_file(), "promtool is not here: `make debian-tools`"
    return str(path)
