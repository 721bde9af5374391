"""One file of values, made of an export, and the files that are made of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import recipe, schema
from pipeline.errors import UserError
from pipeline.gateway import settings as gateway
from pipeline.serving import cluster
from pipeline.serving.targets import IMAGES, TARGETS
from pipeline.toolchains import Toolchain
from tests.deploy.conftest import DIGEST, IDENTITY, SETS, export, laid, values

ROOT = cluster.ROOT


@pytest.mark.parametrize(
    ("settings", "gpus", "pod", "nodes", "mode"),
    [
        ({}, 8, 1, 1, "alone"),
        ({"tensor": 8}, 8, 8, 1, "spawn"),
        ({"tensor": 2, "pipeline": 2}, 8, 4, 1, "spawn"),
        ({"tensor": 8, "pipeline": 2}, 8, 8, 2, "spawn"),
        ({"tensor": 4}, 1, 1, 4, "spawn"),
        ({"target": "vllm", "tensor": 4}, 4, 4, 1, "alone"),
        ({"target": "trtllm-engine"}, 1, 1, 1, "alone"),
    ],
)
def test_gpus_are_laid_out_over_machines(
    settings: dict[str, Any], gpus: int, pod: int, nodes: int, mode: str
) -> None:
    made = values(gpus, **settings)
    assert (made["gpus"]["perPod"], made["multinode"]["size"], made["triton"]["mode"]) == (pod, nodes, mode)
    assert ("sshSecret" in made["multinode"]) == ("image" in made["multinode"]) == (nodes > 1)


@pytest.mark.parametrize(
    ("settings", "gpus", "said"),
    [
        ({"target": "cpu-openvino"}, 8, "export.target is cpu-openvino, which this machine serves"),
        ({"tensor": 8, "pipeline": 3}, 16, "24 GPUs, which do not fill machines of 16"),
        ({"target": "vllm", "tensor": 16}, 8, "several machines serve export.target=trtllm alone"),
        ({"target": "trtllm-engine", "tensor": 2}, 8, "trtllm-engine is served on one here"),
    ],
)
def test_what_cannot_be_served_is_told(settings: dict[str, Any], gpus: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        values(gpus, **settings)


def test_every_target_for_gpus_has_an_image_without_an_invented_digest() -> None:
    assert set(IMAGES) == {name for name, target in TARGETS.items() if target.gpu}
    for target in IMAGES:
        image = cluster.values(export(target), IDENTITY, schema.Deploy(), 8)["image"]
        assert image["digest"] == ""
        assert image["repository"].startswith("nvcr.io/nvidia/")
        assert cluster.image_name(image) == f"{image['repository']}:{image['tag']}"
        assert cluster.image_name({**image, "digest": DIGEST}) == f"{image['repository']}@{DIGEST}"


@pytest.mark.parametrize("container", [True, False])
@pytest.mark.parametrize("name", SETS)
def test_the_gateway_takes_its_settings(name: str, container: bool) -> None:
    for tls in (False, True):
        chosen = laid(SETS[name], local={"tls": tls})
        made = cluster.gateway_settings(chosen, container=container)
        read = gateway.parse(json.loads(json.dumps(made)), "values")
        gateway.check(read)
        assert read.version is not None
        assert read.version.identity == IDENTITY
        assert read.keys_file is not None
        assert bool(read.tls_certificate) == tls
        for address in (read.version.address, read.version.metrics):
            assert gateway.is_loopback(address.rpartition(":")[0]), "Triton is asked over loopback"
        assert gateway.is_loopback(read.host) != container


def test_adapters_are_names_for_clients() -> None:
    routes = SETS["adapters"]["model"]["routes"]
    assert routes["assistant"] == {"model": "assistant", "lora": ""}
    assert routes["french"] == {"model": "assistant", "lora": "french"}


def written(folder: Path, settings: str) -> tuple[list[Path], dict[str, Any]]:
    loaded = recipe.load("llama-8b", ROOT, settings, site="kubernetes")
    repository = Path("/data/runs/llama-8b/export/1f3a/repository")
    files = cluster.written(folder, loaded.settings, IDENTITY, repository)
    return files, yaml.safe_load((folder / "values.yaml").read_text())


def test_a_recipe_gives_values_and_what_is_made_of_them(tmp_path: Path) -> None:
    site = (
        "site.kubernetes.memory=512Gi site.kubernetes.shared_memory=64Gi site.kubernetes.claim=models "
        'site.kubernetes.node_selector=["nvidia.com/gpu.product=H100"] site.slurm.account=chat'
    )
    files, made = written(tmp_path, f"export.serving.tensor=8 export.gpu=H100 {site}")
    assert {file.name for file in files} == {path.name for path in tmp_path.iterdir()}
    assert {file.name for file in files} == {
        "values.yaml", "compose.env", "gateway.json", "serve.sbatch", "gateway-slurm.json"
    }  # fmt: skip
    assert made["gpus"] == {"perPod": 8, "resource": "nvidia.com/gpu", "kind": "H100"}
    assert made["model"]["claim"] == {"name": "models", "path": "runs/llama-8b/export/1f3a/repository"}
    assert made["triton"]["resources"]["memory"] == "512Gi"
    assert made["triton"]["sharedMemory"] == "64Gi"
    assert made["nodeSelector"] == {"nvidia.com/gpu.product": "H100"}
    assert "#SBATCH --account=chat\n" in (tmp_path / "serve.sbatch").read_text()
    gateway.load(tmp_path / "gateway.json")
    gateway.load(tmp_path / "gateway-slurm.json")


def test_the_recipes_limits_are_the_gateways(tmp_path: Path) -> None:
    limits = "deploy.limits.drain_s=240 deploy.limits.max_tokens=512 deploy.probe_every_s=5"
    tls = "deploy.tls_certificate=server.pem deploy.tls_key=server.key"
    _, made = written(tmp_path, f"{limits} {tls}")
    assert made["gateway"]["tlsSecret"] == "assistant-tls"
    read = gateway.load(tmp_path / "gateway.json")
    assert (read.limits.drain_s, read.limits.max_tokens, read.probe_every_s) == (240, 512, 5)
    assert read.limits.requests_per_minute is None
    assert read.tls_certificate == "/etc/lifecycle/tls/tls.crt"
    assert "DRAIN=300s\n" in (tmp_path / "compose.env").read_text()


def test_several_machines_have_no_file_for_compose(tmp_path: Path) -> None:
    files, made = written(tmp_path, "export.serving.tensor=8 export.serving.pipeline=2")
    assert made["multinode"]["size"] == 2
    assert made["multinode"]["sshSecret"] == "assistant-ssh"
    assert "compose.env" not in {file.name for file in files}
    with pytest.raises(UserError, match="laid over 2 machines and compose has one"):
        cluster.compose_environment(made)


def make_again(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline.serving.cluster", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_changed_values_change_everything_made_of_them(tmp_path: Path) -> None:
    written(tmp_path, "export.serving.tensor=8")
    file = tmp_path / "values.yaml"
    changed = laid(yaml.safe_load(file.read_text()), image={"digest": DIGEST}, local={"tls": True})
    changed["gateway"]["settings"]["limits"]["drain_s"] = 240
    file.write_text(yaml.safe_dump(changed))
    done = make_again(tmp_path)
    assert done.returncode == 0, done.stderr
    environment = (tmp_path / "compose.env").read_text()
    assert f"TRITON_DIGEST={DIGEST}\n" in environment
    assert "DRAIN=300s\n" in environment
    assert f"nvidia/tritonserver@{DIGEST}" in (tmp_path / "serve.sbatch").read_text()
    assert gateway.load(tmp_path / "gateway.json").tls_key == "/etc/lifecycle/tls/tls.key"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("a: [", "is no YAML"),
        ("model: {}\n", "image, gpus"),
        ("7\n", "model, image"),
        (
            "{model: {}, image: {}, gpus: {}, multinode: {}, triton: {}, gateway: {}, local: {}, slurm: {}}",
            "not what a deployment writes",
        ),
    ],
)
def test_a_folder_without_values_is_told(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "values.yaml").write_text(text)
    done = make_again(tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def copied(folder: Path) -> list[str]:
    """Put into a folder what the gateway's image has of the repository; returns the paths."""
    lines = (cluster.DEPLOY / "gateway" / "Dockerfile").read_text().splitlines()
    assert "USER 1000:1000" in lines
    words = [line.split()[1:] for line in lines if line.startswith("COPY")]
    copies = [(source, each[-1]) for each in words for source in each[:-1]]
    for source, target in copies:
        place = folder / target / ("" if (ROOT / source).is_dir() else Path(source).name)
        place.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, place)
    return [source for source, _ in copies]


def status(url: str, key: str = "") -> int:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_what_the_gateways_image_has_is_enough_to_run_with_settings_from_values(
    tmp_path: Path, promtool: str
) -> None:
    assert "configs/toolchains/gateway.lock" in copied(tmp_path)
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in cluster.PORTS]
        ports = {name: each.getsockname()[1] for name, each in zip(cluster.PORTS, sockets, strict=True)}
    keys = tmp_path / "keys"
    keys.write_text("chat: a-key-of-this-test-alone\n")
    made = cluster.gateway_settings(SETS["adapters"]) | ports | {"keys_file": str(keys)}
    made |= {"host": "127.0.0.1", "metrics_host": "127.0.0.1"}
    made["version"] |= {"address": "127.0.0.1:9", "metrics": "127.0.0.1:9"}  # nobody is there
    (tmp_path / "gateway.json").write_text(json.dumps(made))
    process = subprocess.Popen(
        [str(Toolchain("gateway").python), "-m", "pipeline.gateway", "gateway.json"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{ports['http_port']}"
        deadline = time.monotonic() + 20
        while status(f"{address}/health") != 200:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert status(f"{address}/ready") == 503, "no token was generated"
        assert status(f"{address}/v1/models") == 401
        assert status(f"{address}/v1/models", "a-key-of-this-test-alone") != 401
        with urllib.request.urlopen(f"http://127.0.0.1:{ports['metrics_port']}/metrics", timeout=5) as answer:
            told = answer.read()
        checked = subprocess.run([promtool, "check", "metrics"], input=told, capture_output=True, check=False)
        assert checked.returncode == 0, checked.stderr
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        process.communicate()
