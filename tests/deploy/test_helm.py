"""The chart through Helm's own library, and each object through the schemas of those who will read it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import helm_python as helm
import jsonschema
import kubernetes_validate
import pytest
import yaml

from pipeline.gateway import settings as gateway
from pipeline.serving import cluster
from tests import restricted
from tests.deploy import leaderworkerset
from tests.deploy.conftest import (
    CHART,
    DIGEST,
    RELEASE,
    SETS,
    container,
    laid,
    objects,
    of_kind,
    pods,
    render_values,
    values,
)

Render = Callable[[str], dict[str, str]]
KUBERNETES = ("1.31", "1.37")  # the oldest that the rest of the project is held to, and the newest known
SEVERAL = [name for name, each in SETS.items() if each["multinode"]["size"] > 1]


@pytest.mark.parametrize("name", SETS)
def test_helm_lint_finds_nothing(name: str) -> None:
    found = helm.lint(CHART, SETS[name], strict=True, kube_version="1.31.0")
    told = [each for each in found["messages"] if "icon is recommended" not in each["error"]]
    assert not told
    assert not found["errors"]


def test_helm_asks_for_what_only_an_export_knows() -> None:
    with pytest.raises(helm.HelmError, match="identity"):
        render_values({})


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", SETS)
def test_every_object_is_one_that_kubernetes_takes(render: Render, name: str, version: str) -> None:
    kinds = []
    for each in objects(render(name)):
        kinds.append(each["kind"])
        if each["kind"] == "LeaderWorkerSet":
            leaderworkerset.validate(each, version)
        else:
            kubernetes_validate.validate(each, version, strict=True)
    run = "LeaderWorkerSet" if name in SEVERAL else "Deployment"
    always = [
        "ConfigMap",
        "NetworkPolicy",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    ]
    scaled = ["HorizontalPodAutoscaler"] if SETS[name].get("autoscaling", {}).get("enabled") else []
    assert sorted(kinds) == sorted([run, *always, *scaled])


@pytest.mark.parametrize(
    "wrong",
    [{"size": 0}, {"restartPolicy": "Default"}, {"replicaz": 1}, {"workerTemplate": {"spec": {"hostz": 1}}}],
)
def test_a_wrong_leaderworkerset_is_refused(render: Render, wrong: dict[str, Any]) -> None:
    (found,) = of_kind(render("two-nodes"), "LeaderWorkerSet")
    found["spec"]["leaderWorkerTemplate"] |= wrong
    with pytest.raises((jsonschema.ValidationError, kubernetes_validate.ValidationError)):
        leaderworkerset.validate(found, KUBERNETES[0])


@pytest.mark.parametrize("name", SETS)
def test_no_pod_may_more_than_it_needs(render: Render, name: str) -> None:
    found = dict(pods(render(name)))
    assert set(found) == ({"server", "worker"} if name in SEVERAL else {"server"})
    for pod in found.values():
        spec = pod["spec"]
        assert not restricted.faults(spec)
        assert spec["automountServiceAccountToken"] is False
        assert spec["serviceAccountName"] == RELEASE
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        assert not [volume for volume in spec["volumes"] if "hostPath" in volume]
        security = spec["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            security = each["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= set(each["resources"]["requests"])
            assert "memory" in each["resources"]["limits"]
            written = {mount["mountPath"] for mount in each["volumeMounts"] if not mount.get("readOnly")}
            assert written <= {"/tmp", "/dev/shm", *(["/models"] if each["name"] == "fetch" else [])}
            mounted = {mount["name"] for mount in each["volumeMounts"]}
            assert mounted <= {volume["name"] for volume in spec["volumes"]}
            assert not each["image"].endswith(":latest")
    (account,) = of_kind(render(name), "ServiceAccount")
    assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("name", SETS)
def test_secrets_are_named_and_never_held(render: Render, name: str) -> None:
    server = dict(pods(render(name)))["server"]
    volumes = {volume["name"]: volume for volume in server["spec"]["volumes"]}
    assert volumes["keys"]["secret"]["secretName"] == "assistant-keys"
    assert not of_kind(render(name), "Secret")
    mounted = {mount["name"] for mount in container(server, "triton")["volumeMounts"]}
    assert not {"keys", "tls"} & mounted, "Triton has no business with the clients' keys"


@pytest.mark.parametrize("name", SETS)
def test_gpus_are_those_of_the_layout(render: Render, name: str) -> None:
    export = SETS[name]["gpus"]["perPod"]
    for pod in dict(pods(render(name))).values():
        assert container(pod, "triton")["resources"]["limits"]["nvidia.com/gpu"] == str(export)


@pytest.mark.parametrize("name", SETS)
def test_only_the_gateways_ports_are_let_in(render: Render, name: str) -> None:
    files = render(name)
    policies = {each["metadata"]["name"]: each["spec"] for each in of_kind(files, "NetworkPolicy")}
    (service,) = of_kind(files, "Service")
    server = dict(pods(files))["server"]
    named = {port["name"]: port["containerPort"] for port in container(server, "gateway")["ports"]}
    assert named == {"http": 8000, "grpc": 8001, "metrics": 8002}
    assert "ports" not in container(server, "triton")
    assert {port["targetPort"] for port in service["spec"]["ports"]} == {"http", "grpc"}
    let_in = [port["port"] for rule in policies[RELEASE]["ingress"] for port in rule["ports"]]
    assert let_in == ["http", "grpc", "metrics"]
    # Metrics are for Prometheus alone; each rule names ports, or the release's own pods.
    assert policies[RELEASE]["ingress"][1]["from"]
    own = {"podSelector": {"matchLabels": service["spec"]["selector"].copy()}}
    del own["podSelector"]["matchLabels"]["nemo-lifecycle.io/role"]
    between = policies[f"{RELEASE}-pods"]
    assert between["policyTypes"] == ["Ingress", "Egress"]
    assert between["podSelector"] == own["podSelector"]
    assert between.get("ingress", []) == ([{"from": [own]}] if name in SEVERAL else [])
    everywhere = [rule for rule in between["egress"] if "to" not in rule]
    ports = [port["port"] for rule in everywhere for port in rule["ports"]]
    assert ports == ([443] if "object-store" in name else [])
    # A question for a name can carry anything: the cluster's own resolver gets it, and nobody else.
    names = between["egress"][0]
    assert [(port["port"], port["protocol"]) for port in names["ports"]] == [(53, "UDP"), (53, "TCP")]
    (resolver,) = names["to"]
    assert resolver["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    assert resolver["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}


def selects(selector: dict[str, str], pod: dict[str, Any]) -> bool:
    return selector.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("name", SETS)
def test_selectors_find_the_pods(render: Render, name: str) -> None:
    files = render(name)
    found = dict(pods(files))
    (service,) = of_kind(files, "Service")
    assert [role for role, pod in found.items() if selects(service["spec"]["selector"], pod)] == ["server"]
    (budget,) = of_kind(files, "PodDisruptionBudget")
    assert all(selects(budget["spec"]["selector"]["matchLabels"], pod) for pod in found.values())
    for deployment in of_kind(files, "Deployment"):
        assert selects(deployment["spec"]["selector"]["matchLabels"], found["server"])
    for scaler in of_kind(files, "HorizontalPodAutoscaler"):
        kind, target = (
            ("LeaderWorkerSet" if name in SEVERAL else "Deployment"),
            scaler["spec"]["scaleTargetRef"],
        )
        (scaled,) = of_kind(files, kind)
        assert (target["kind"], target["name"]) == (kind, scaled["metadata"]["name"])
        assert target["apiVersion"] == scaled["apiVersion"]
        assert "replicas" not in scaled["spec"], "the autoscaler's number would be overwritten"
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == "lifecycle_requests_waiting"


@pytest.mark.parametrize("name", SETS)
def test_health_is_a_generation(render: Render, name: str) -> None:
    server = dict(pods(render(name)))["server"]
    triton, gate = container(server, "triton"), container(server, "gateway")
    scheme = "HTTPS" if SETS[name]["gateway"].get("tlsSecret") else "HTTP"
    ready = {"path": "/ready", "port": 8000, "scheme": scheme}
    for probe in (
        triton["startupProbe"],
        triton["livenessProbe"],
        gate["startupProbe"],
        gate["readinessProbe"],
    ):
        assert probe["httpGet"] == ready
    assert gate["livenessProbe"]["httpGet"]["path"] == "/health"
    assert gate["startupProbe"]["failureThreshold"] * gate["startupProbe"]["periodSeconds"] == 1800
    # A dead model is not waited for; a pod that is to go finishes its answers first.
    assert triton["livenessProbe"]["terminationGracePeriodSeconds"] <= 30
    limits = SETS[name]["gateway"]["settings"]["limits"]
    sleep = int(gate["lifecycle"]["preStop"]["exec"]["command"][1])
    assert server["spec"]["terminationGracePeriodSeconds"] >= limits["drain_s"] + sleep + 30
    assert "after-gateway" in triton["lifecycle"]["preStop"]["exec"]["command"]


@pytest.mark.parametrize("name", SETS)
def test_the_gateway_is_told_the_same_everywhere(render: Render, name: str) -> None:
    """Helm and Python make the same settings of the values."""
    (config,) = of_kind(render(name), "ConfigMap")
    found = json.loads(config["data"]["gateway.json"])
    gateway.check(gateway.parse(found, "gateway.json"))
    tls = bool(SETS[name]["gateway"].get("tlsSecret"))
    assert found == cluster.gateway_settings(laid(SETS[name], local={"tls": tls}))
    script = CHART / "files" / "triton.sh"
    assert config["data"]["triton.sh"].rstrip() == script.read_text().rstrip()


def test_a_group_has_a_leader_and_workers(render: Render) -> None:
    (group,) = of_kind(render("two-nodes"), "LeaderWorkerSet")
    template = group["spec"]["leaderWorkerTemplate"]
    assert template["size"] == 2
    assert template["restartPolicy"] == "RecreateGroupOnPodRestart"
    found = dict(pods(render("two-nodes")))
    for pod in found.values():
        assert "/tritonserver-multinode@" in container(pod, "triton")["image"], "NVIDIA's has no ssh server"
    assert container(found["server"], "triton")["command"][-1] == "leader"
    assert container(found["worker"], "triton")["command"][-1] == "worker"
    assert [each["name"] for each in found["worker"]["spec"]["containers"]] == ["triton"]
    assert container(dict(pods(render("eight-gpus")))["server"], "triton")["command"][-1] == "spawn"


def test_a_model_comes_from_a_volume_or_an_object_store(render: Render) -> None:
    spec = dict(pods(render("one-gpu")))["server"]["spec"]
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["name"] == "models"]
    assert mount["readOnly"] is True
    assert mount["subPath"] == "runs/llama-8b/export/1f3a/repository"
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert "initContainers" not in spec
    for pod in dict(pods(render("two-nodes-object-store"))).values():
        (fetch,) = pod["spec"]["initContainers"]
        assert fetch["image"] == f"public.ecr.aws/aws-cli/aws-cli@{DIGEST}"
        assert fetch["envFrom"] == [{"secretRef": {"name": "store"}}]
        assert {"name": "SOURCE", "value": "s3://models/assistant/repository"} in fetch["env"]
        (mount,) = [each for each in pod["spec"]["containers"][0]["volumeMounts"] if each["name"] == "models"]
        assert mount["readOnly"] is True
        assert "subPath" not in mount


def test_notes_ask_for_digests(render: Render) -> None:
    assert render("tags")["NOTES.txt"].count("give its digest") == 2
    assert "give its digest" not in render("one-gpu")["NOTES.txt"]


@pytest.mark.parametrize("name", [name for name in SETS if name != "tags"])
def test_images_are_named_by_their_digests(render: Render, name: str) -> None:
    for pod in dict(pods(render(name))).values():
        spec = pod["spec"]
        for each in (*spec["containers"], *spec.get("initContainers", [])):
            assert each["image"].endswith(f"@{DIGEST}")


@pytest.mark.parametrize("lacking", ["image", "gateway", "multinode"])
def test_a_release_without_a_digest_is_refused_with_what_to_do(lacking: str) -> None:
    made = values(tensor=8, pipeline=2) if lacking == "multinode" else values()
    image = made["image"] if lacking == "image" else made[lacking]["image"]
    image["digest"] = ""
    said = f"the image {image['repository']} has no digest: .*imagetools inspect {image['repository']}:{image['tag']}"
    with pytest.raises(helm.HelmError, match=said):
        render_values(made)


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ({"network": {"dns": []}}, "/network/dns"),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": 0}}, "no replica could ever be replaced"),
        ({"autoscaling": {"minReplicas": 5}}, "minReplicas is more than"),
        ({"model": {"claim": {"name": "", "path": ""}}}, "/model/claim/name"),
        ({"model": {"claim": {"path": "/absolute"}}}, "/model/claim/path"),
        ({"model": {"source": "ftp"}}, "/model/source"),
        ({"model": {"source": "objectStore"}}, "/model/objectStore"),
        ({"model": {"target": "cpu-openvino"}}, "/model/target"),
        ({"model": {"routes": {"x": {"model": "x"}}}}, "/model/routes"),
        ({"image": {"tag": "latest"}}, "/image"),
        ({"image": {"tag": "", "digest": ""}}, "/image"),
        ({"image": {"digest": "sha256:1234"}}, "/image/digest"),
        ({"multinode": {"size": 2}}, "/multinode/sshSecret"),
        ({"multinode": {"size": 2, "sshSecret": "keys"}}, "/multinode/image"),
        ({"multinode": {"size": 0}}, "/multinode/size"),
        ({"multinode": {"sshPort": 22}}, "/multinode/sshPort"),
        ({"gpus": {"perPod": 0}}, "/gpus/perPod"),
        ({"gpus": {"perPod": "1"}}, "/gpus/perPod"),
        ({"gateway": {"keysSecret": ""}}, "/gateway/keysSecret"),
        ({"gateway": {"settings": {"insecure": True}}}, "insecure"),
        ({"gateway": {"settings": {"limits": {"drain": 3}}}}, "drain"),
        ({"triton": {"mode": "rank"}}, "/triton/mode"),
        ({"triton": {"sharedMemory": "lots"}}, "/triton/sharedMemory"),
        ({"service": {"type": "ExternalName"}}, "/service/type"),
        ({"user": 0}, "/user"),
        ({"hostNetwork": True}, "hostNetwork"),
    ],
)
def test_wrong_values_are_refused(over: dict[str, Any], said: str) -> None:
    with pytest.raises(helm.HelmError, match=said):
        render_values(laid(values(), **over))


def test_the_schema_knows_every_setting_of_the_gateway_but_those_of_the_chart() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]["gateway"]["properties"]["settings"]["properties"]
    of_the_chart = {
        "host", "http_port", "grpc_port", "metrics_port", "metrics_host", "keys_file", "tls_certificate", "tls_key",
        "version", "insecure", "control", "log", "keeper",
    }  # fmt: skip
    assert set(known) == set(gateway.Settings.__dataclass_fields__) - of_the_chart
    assert set(known["limits"]["properties"]) == set(gateway.Limits.__dataclass_fields__)
    jsonschema.Draft7Validator.check_schema(schema)


def test_the_charts_own_values_are_those_of_the_schema() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(defaults) == set(schema["properties"]) - {"global"}
