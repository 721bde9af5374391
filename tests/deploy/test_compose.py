"""deploy/compose.yaml by the compose specification's schema, and by docker-compose where it is installed."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.serving import cluster
from tests.deploy.conftest import DEPLOY, DIGEST, SETS, laid

COMPOSE = DEPLOY / "compose.yaml"
TLS = DEPLOY / "compose.tls.yaml"


@pytest.mark.parametrize("file", [COMPOSE, TLS])
def test_it_is_what_the_specification_says(file: Path) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_specification_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    wrong = yaml.safe_load(COMPOSE.read_text())
    wrong["services"]["triton"]["gpu_count"] = 3
    file = tmp_path / "compose.yaml"
    file.write_text(yaml.safe_dump(wrong))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(file)]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def composed(folder: Path, values: dict[str, Any], *files: Path) -> dict[str, Any]:
    """What docker-compose makes of the files and of an export's variables."""
    assert shutil.which("docker-compose"), "docker-compose is not here: `make compose` installs it on Debian"
    environment = folder / "compose.env"
    environment.write_text(cluster.compose_environment(values))
    chosen = [word for file in files for word in ("--file", str(file))]
    done = subprocess.run(
        ["docker-compose", "--env-file", str(environment), *chosen, "config"],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made: dict[str, Any] = yaml.safe_load(done.stdout)
    return made


@pytest.mark.parametrize("name", ["one-gpu", "eight-gpus", "adapters", "vllm"])
def test_docker_compose_reads_it(tmp_path: Path, name: str) -> None:
    values = laid(SETS[name], local={"host": "10.0.0.7", "http_port": 9000})
    services = composed(tmp_path, values, COMPOSE)["services"]
    triton = services["triton"]
    assert triton["image"] == cluster.image_name(values["image"])
    assert triton["command"] == [values["triton"]["mode"]]
    assert triton["environment"]["IDENTITY"] == values["model"]["identity"]
    assert "/models here/repository:/models:ro" in [str(mount) for mount in triton["volumes"]]
    assert services["gateway"]["image"] == cluster.image_name(values["gateway"]["image"])
    assert services["gateway"]["build"]["args"]["PYTHON"] == f"docker.io/library/python@{DIGEST}"
    for image in ("triton", "prometheus", "grafana"):
        assert services[image]["image"].endswith(f"@{DIGEST}"), image
    assert float(triton["cpus"]) == float(values["triton"]["resources"]["cpu"])
    (device,) = triton["deploy"]["resources"]["reservations"]["devices"]
    assert int(device["count"]) == values["gpus"]["perPod"]
    published = {str(port).rpartition("/")[0] or str(port) for port in services["address"]["ports"]}
    assert published == {"10.0.0.7:9000:8000", "10.0.0.7:8001:8001"}


def test_docker_compose_adds_certificates(tmp_path: Path) -> None:
    services = composed(tmp_path, SETS["one-gpu"], COMPOSE, TLS)["services"]
    targets = {secret["target"] for secret in services["gateway"]["secrets"]}
    told = cluster.gateway_settings(laid(SETS["one-gpu"], local={"tls": True}))
    assert targets == {told["keys_file"], told["tls_certificate"], told["tls_key"]}
    assert "https://" in services["gateway"]["healthcheck"]["test"][-1]


def test_docker_compose_wants_every_variable(tmp_path: Path) -> None:
    (tmp_path / "empty.env").write_text("")
    done = subprocess.run(
        ["docker-compose", "--env-file", str(tmp_path / "empty.env"), "--file", str(COMPOSE), "config"],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode != 0


def test_nothing_may_more_than_it_needs() -> None:
    found = yaml.safe_load(COMPOSE.read_text())
    assert set(found["services"]) == {"address", "triton", "gateway", "prometheus", "grafana"}
    for name, service in found["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "cap_add", "pid", "ipc"} & set(service)
        assert "docker.sock" not in str(service.get("volumes"))
        assert int(service["user"].partition(":")[0]) > 0, name
        assert {"mem_limit", "cpus", "pids_limit"} <= set(service), name
        assert "@" in service["image"] or "build" in service or name == "address", name


def test_only_the_gateway_is_published_and_the_rest_is_for_this_machine() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert services["triton"]["network_mode"] == services["gateway"]["network_mode"] == "service:address"
    ports = {name: service.get("ports", []) for name, service in services.items()}
    assert [port.rpartition(":")[2] for port in ports["address"]] == ["8000", "8001"]
    assert all(port.startswith("${LISTEN:-127.0.0.1}:") for port in ports["address"])
    assert ports["triton"] == ports["gateway"] == []
    assert all(port.startswith("127.0.0.1:") for port in (*ports["prometheus"], *ports["grafana"]))


def test_variables_are_those_of_the_file() -> None:
    """No variable is written for nothing, and none that must be there is missing."""
    written = {
        line.partition("=")[0]
        for line in cluster.compose_environment(SETS["one-gpu"]).splitlines()
        if not line.startswith("#")
    }
    text = COMPOSE.read_text()
    used = {part.partition("}")[0].partition(":")[0] for part in text.split("${")[1:]}
    needed = {part.partition("}")[0].removesuffix(":?") for part in text.split("${")[1:] if ":?}" in part}
    assert needed <= written <= used
    assert used - written == {"PROMETHEUS_PORT", "GRAFANA_PORT"}


@pytest.mark.parametrize("lacking", ["triton", "prometheus", "grafana"])
def test_docker_compose_waits_for_digests(tmp_path: Path, lacking: str) -> None:
    assert shutil.which("docker-compose"), "docker-compose is not here: `make compose` installs it on Debian"
    over = {"image": {"digest": ""}} if lacking == "triton" else {"local": {"digests": {lacking: ""}}}
    (tmp_path / "compose.env").write_text(cluster.compose_environment(laid(SETS["one-gpu"], **over)))
    done = subprocess.run(
        ["docker-compose", "--env-file", str(tmp_path / "compose.env"), "--file", str(COMPOSE), "config"],
        capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode != 0
    assert "of values.yaml is not set" in done.stderr


def test_limits_are_those_of_the_values(tmp_path: Path) -> None:
    resources = {"resources": {"cpu": "3", "memory": "48Gi"}}
    lines = cluster.compose_environment(
        laid(SETS["one-gpu"], triton=resources, gateway=resources)
    ).splitlines()
    assert {"TRITON_MEMORY=48g", "TRITON_CPUS=3", "GATEWAY_MEMORY=48g", "GATEWAY_CPUS=3"} <= set(lines)


def test_the_start_script_is_where_the_mounts_say() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    source = next(mount for mount in services["triton"]["volumes"] if "triton.sh" in mount).partition(":")[0]
    assert (DEPLOY / source).is_file()
    assert services["triton"]["entrypoint"] == shlex.split("/bin/bash /etc/lifecycle/triton.sh")
