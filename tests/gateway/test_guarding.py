"""Whom the gateway lets in, what it keeps out, and what it tells nobody, in front of a real Triton."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import tritonclient.grpc as triton

from pipeline.errors import UserError
from pipeline.record import trace
from pipeline.serving import service
from pipeline.toolchains import ROOT
from tests.gateway.asking import LONG, QUESTION, Start, bearer, infer_input, waiting
from tests.gateway.deploy_miniature import KEYS

# ------------------------------------------------------------------------------- keys


def test_without_a_key_there_is_nothing_but_health(deployed: service.Service) -> None:
    url = deployed.gateway.url
    for path in ("/v1/models", "/v2", "/v2/models/assistant", "/openapi.json", "/nowhere"):
        for headers in ({}, bearer("wrong-0123456789abcdef"), {"Authorization": f"Basic {KEYS['alice']}"}):
            refused = requests.get(url + path, headers=headers, timeout=10)
            assert refused.status_code == 401
            assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert requests.get(url + path, headers=bearer(KEYS["bob"]), timeout=10).status_code != 401
    for path in ("/health", "/ready", "/v2/health/live", "/v2/health/ready"):
        assert requests.get(url + path, timeout=10).status_code == 200


def test_grpc_wants_the_key_too(deployed: service.Service) -> None:
    address = f"127.0.0.1:{deployed.gateway.grpc_port}"
    with triton.InferenceServerClient(address) as client:
        assert client.is_server_ready()
        for headers in (None, {"authorization": "Bearer wrong-0123456789abcdef"}):
            with pytest.raises(Exception, match="UNAUTHENTICATED"):
                client.infer("assistant", [infer_input()], headers=headers)
        found = client.infer("assistant", [infer_input()], headers={"authorization": f"Bearer {KEYS['bob']}"})
        assert found.as_numpy("completion_tokens")[0] > 0


def test_keys_may_change_while_it_runs(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one: one-0123456789abcdef\n")
    gateway = start(keys_file=str(file))
    url = f"{gateway.url}/v1/models"
    assert requests.get(url, headers=bearer("one-0123456789abcdef"), timeout=10).status_code == 200
    file.write_text("half a line")  # spoilt: the keys that were known stay
    time.sleep(5.2)
    for _ in range(2):
        assert requests.get(url, headers=bearer("one-0123456789abcdef"), timeout=10).status_code == 200
    assert gateway.log.read_text().count("the keys that were known stay") == 1
    digest = "a4b9ee7ae1dd6a4d5a3f4e1f8d9aa37ad14ac4ad1d8f53d8ce1c8a1c5b7ee1ff"
    file.write_text(f"two: two-0123456789abcdef\nthree: sha256:{digest}\n")
    time.sleep(5.2)
    assert requests.get(url, headers=bearer("one-0123456789abcdef"), timeout=10).status_code == 401
    assert requests.get(url, headers=bearer("two-0123456789abcdef"), timeout=10).status_code == 200
    assert "0123456789abcdef" not in gateway.log.read_text()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"host": "0.0.0.0"}, "name a keys_file with API keys, or set insecure"),
        ({"keys_file": "nowhere"}, "the keys in nowhere cannot be read"),
        ({"tls_certificate": "c.pem"}, "belong together"),
        ({"tls_certificate": "c.pem", "tls_key": "k.pem"}, "cannot be used together: No such file"),
        ({"http_prot": 1}, "unknown setting 'http_prot'"),
        ({"http_port": "1"}, "http_port is '1'; it must be int"),
        ({"http_port": 8001}, "the three ports must differ"),
        ({"version": {"identity": "x"}}, "address, metrics, models is missing"),
    ],
)
def test_wrong_settings_are_told_with_status_2(tmp_path: Path, settings: Any, said: str) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps(settings))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.gateway", str(file)],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        file.write_text(json.dumps({"http_port": holder.getsockname()[1]}))
        done = subprocess.run(
            [sys.executable, "-m", "pipeline.gateway", str(file)],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
    assert (done.returncode, "cannot listen" in done.stderr) == (1, True), done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- what is not there


def test_nothing_of_tritons_own_can_be_controlled(start: Start, deployed: service.Service) -> None:
    gateway = start()
    for path in (
        "/v2/repository/models/assistant/unload",
        "/v2/repository/models/assistant/load",
        "/v2/systemsharedmemory/region/x/register",
        "/v2/cudasharedmemory/region/x/register",
        "/v2/trace/setting",
        "/v2/logging",
        "/metrics",
    ):
        assert requests.post(gateway.url + path, json={}, timeout=10).status_code in (404, 405), path
    with triton.InferenceServerClient(gateway.grpc) as client:
        for call in (
            lambda: client.unload_model("assistant"),
            lambda: client.register_system_shared_memory("x", "/x", 8),
            lambda: client.update_log_settings({"log_verbose_level": 9}),
        ):
            with pytest.raises(Exception, match="UNIMPLEMENTED"):
                call()
    # Whoever is on the machine and finds Triton's own port gets no further.
    own = f"http://{deployed.version.address}"
    for path in ("/v2/repository/index", "/v2/repository/models/assistant/unload", "/v2/logging"):
        assert requests.post(own + path, json={}, timeout=10).status_code == 403, path
    assert gateway.generate(text_input=QUESTION, max_tokens=4).status_code == 200


def test_shared_memory_cannot_be_asked_for(start: Start) -> None:
    gateway = start()
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [QUESTION]}
    url = f"{gateway.url}/v2/models/assistant/infer"
    for parameters in ({"shared_memory_region": "x"}, {"shared_memory_byte_size": 8}):
        body = {"inputs": [{**tensor, "parameters": parameters}]}
        assert requests.post(url, json=body, timeout=10).status_code == 400
    shared = triton.InferInput("text_input", [1], "BYTES")
    shared.set_shared_memory("x", 8)
    with (
        triton.InferenceServerClient(gateway.grpc) as client,
        pytest.raises(Exception, match="no shared memory"),
    ):
        client.infer("assistant", [shared])


def test_a_request_is_its_callers_own(start: Start, tmp_path: Path) -> None:
    """Nobody ends, or learns of, the requests of another."""
    file = tmp_path / "keys"
    file.write_text("".join(f"{name}: {key}\n" for name, key in KEYS.items()))
    gateway = start(keys_file=str(file), probe_every_s=60.0)

    def ask(who: str, **body: Any) -> requests.Response:
        return gateway.generate(headers=bearer(KEYS[who]), **body)

    with ThreadPoolExecutor(1) as pool:
        gateway.wire.hold()
        mine = pool.submit(ask, "alice", request_id="7", **LONG)
        waiting(gateway, 1)
        other = ask("bob", cancel=True, request_id="7")
        assert "no request with the request_id '7' is running" in other.json()["error"]
        same = ask("alice", request_id="7", **LONG)
        assert "a request with the request_id '7' is running" in same.json()["error"]
        gateway.wire.release()
        assert mine.result().json()["completion_tokens"] == LONG["max_tokens"]


def test_prompts_and_answers_are_not_logged(start: Start, deployed: service.Service) -> None:
    gateway = start()
    said = gateway.generate(text_input="Xylophone quartz?", max_tokens=30).json()["text_output"]
    gateway.generate(text_input="Xylophone quartz?", max_tokens=-1)
    requests.post(f"{gateway.url}/v1/completions", json={"prompt": "Xylophone quartz?", "x": 1}, timeout=10)
    time.sleep(0.2)
    logs = gateway.log.read_text() + Path(deployed.version.log).read_text()
    assert '"api": "generate"' in logs
    assert "Xylophone" not in logs
    assert len(said) > 4
    assert said[:12] not in logs


def test_the_control_socket_is_its_owners(deployed: service.Service) -> None:
    control = Path(deployed.gateway.control)
    assert control.stat().st_mode & 0o777 == 0o600
    assert control.parent.stat().st_mode & 0o777 == 0o700


# ------------------------------------------------------------------------------- TLS


def test_tls_over_http_and_grpc(start: Start, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    gateway = start(tls_certificate=str(certificate), tls_key=str(key))
    served = trace.served_models(gateway.url, str(certificate))
    assert [each["model"] for each in served] == ["assistant"]
    assert served == trace.served_models(gateway.url.removeprefix("https://"), str(certificate))
    with pytest.raises(UserError, match="no Triton server answers"):
        trace.served_models(gateway.url)
    with pytest.raises(UserError, match="No such file"):
        trace.served_models(gateway.url, str(tmp_path / "none.pem"))
    assert gateway.generate(text_input=QUESTION, max_tokens=4).status_code == 200
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{gateway.url}/ready", timeout=10)
    with socket.create_connection(("127.0.0.1", gateway.settings["http_port"]), timeout=10) as plain:
        plain.sendall(b"GET /ready HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" not in plain.recv(100)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    address = ("127.0.0.1", gateway.settings["http_port"])
    with socket.create_connection(address, timeout=10) as raw, pytest.raises((ssl.SSLError, OSError)):
        old.wrap_socket(raw)
    channel = grpc.ssl_channel_credentials(certificate.read_bytes())
    with triton.InferenceServerClient(gateway.grpc, creds=channel) as client:
        assert client.infer("assistant", [infer_input()]).as_numpy("completion_tokens")[0] > 0
