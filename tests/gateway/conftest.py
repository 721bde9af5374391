"""Gateways to ask: one of scripted answers, and one in front of a real Triton."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import requests

from pipeline.serving import service
from pipeline.toolchains import ROOT, Toolchain
from tests.gateway.deploy_miniature import KEYS
from tests.gateway.scripted import KEY, MODEL, ScriptedService, made, serving
from tests.gateway.wire import Wire
from tests.miniature import free_ports


@dataclass(frozen=True)
class Gateway:
    """Where it is, a key that it takes, and a model that it has."""

    url: str
    key: str
    model: str


@dataclass
class Started:
    """A gateway of a test's own in front of the real Triton; ``settings`` are those of its file.

    ``wire`` is what lies between the two.
    """

    process: subprocess.Popen[bytes]
    settings: dict[str, Any]
    log: Path
    wire: Wire

    @property
    def url(self) -> str:
        scheme = "https" if self.settings.get("tls_certificate") else "http"
        return f"{scheme}://127.0.0.1:{self.settings['http_port']}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.settings['grpc_port']}"

    def metrics(self) -> str:
        return requests.get(f"http://127.0.0.1:{self.settings['metrics_port']}/metrics", timeout=10).text

    def generate(self, timeout: float = 30, headers: Any = None, **body: Any) -> requests.Response:
        """One answer over Triton's protocol."""
        url = f"{self.url}/v2/models/assistant/generate"
        verify = self.settings.get("tls_certificate", True)
        return requests.post(url, json=body, timeout=timeout, headers=headers, verify=verify)


@pytest.fixture(scope="session")
def scripted() -> ScriptedService:
    return ScriptedService()


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """The miniature model behind the gateway that the deploy stage starts, with API keys."""
    folder = tmp_path_factory.mktemp("deployed")
    script = ROOT / "tests" / "gateway" / "deploy_miniature.py"
    done = subprocess.run(
        [str(Toolchain("serving").python), str(script), str(folder)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = service.read(folder / "deploy" / "server.json")
    assert record is not None
    yield record
    service.stop(record)


@pytest.fixture(scope="session", params=["scripted", "real"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Gateway]:
    if request.param == "real":
        record: service.Service = request.getfixturevalue("deployed")
        yield Gateway(record.gateway.url, KEYS["alice"], record.version.model_name)
        return
    with serving(made(request.getfixturevalue("scripted"))) as url:
        yield Gateway(url, KEY, MODEL)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=20) as found:
        yield found


@pytest.fixture
def start(deployed: service.Service, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Start a gateway with settings of its own in front of the deployed model's Triton."""
    yield from _starting(deployed, tmp_path)


@pytest.fixture(scope="module")
def start_for_module(
    deployed: service.Service, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Started]]:
    """The same, for all tests of a module."""
    yield from _starting(deployed, tmp_path_factory.mktemp("gateway"))


def _starting(deployed: service.Service, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    running: list[Started] = []

    def begin(**settings: Any) -> Started:
        http, grpc, metrics = free_ports(3)
        wire = Wire(deployed.version.address)
        version = {**service.plain(deployed.version, deployed.models), "address": wire.address}
        ports = {"http_port": http, "grpc_port": grpc, "metrics_port": metrics}
        whole = {**ports, "version": version, "probe_every_s": 0.5, **settings}
        number = len(running)
        file, log = tmp_path / f"gateway{number}.json", tmp_path / f"gateway{number}.log"
        file.write_text(json.dumps(whole))
        with open(log, "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.gateway", str(file)], cwd=ROOT, stdout=output, stderr=output
            )
        found = Started(process, whole, log, wire)
        running.append(found)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            try:
                verify = settings.get("tls_certificate", True)
                if requests.get(f"{found.url}/ready", timeout=5, verify=verify).status_code == 200:
                    return found
            except requests.ConnectionError:
                pass
            time.sleep(0.05)
        raise AssertionError(log.read_text())

    yield begin
    for each in running:
        each.process.send_signal(signal.SIGKILL)
        each.process.wait()
        each.wire.close()
