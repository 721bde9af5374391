"""A web page on this machine cannot use the gateway, whatever its name is bound to, unless its origin is named."""

from __future__ import annotations

import http.client
import json
from typing import Any

import pytest
import requests

from pipeline.gateway.settings import Settings, SettingsError, check
from tests.gateway.asking import QUESTION, Start

ASK = json.dumps({"text_input": QUESTION, "max_tokens": 2, "temperature": 0.0})
CHAT = json.dumps(
    {"model": "assistant", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 2}
)
INFER = json.dumps(
    {
        "inputs": [
            {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [QUESTION]},
            {"name": "max_tokens", "datatype": "INT32", "shape": [1], "data": [2]},
        ]
    }
)
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": json.dumps({"model": "assistant", "prompt": "a", "max_tokens": 2}),
    "/v2/models/assistant/generate": ASK,
    "/v2/models/assistant/generate_stream": ASK,
    "/v2/models/assistant/infer": INFER,
}
READ = ("/v1/models", "/v2", "/v2/models/assistant", "/openapi.json", "/health", "/ready", "/v2/health/ready")
TYPE = {"Content-Type": "application/json"}
PAGE = "https://evil.example"


@pytest.fixture(scope="module")
def gateway(start_for_module: Start) -> Any:
    return start_for_module()


@pytest.fixture(scope="module")
def named(start_for_module: Start) -> Any:
    return start_for_module(hosts=["Chat.example.org"], cors_origins=["https://app.example.org"])


def asked(
    port: int, path: str, body: str | None = None, method: str = "", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers and body of a request with exactly these headers (``_`` for ``-``)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.putrequest(
        method or ("POST" if body is not None else "GET"), path, skip_host=True, skip_accept_encoding=True
    )
    for name, value in ({"Host": f"127.0.0.1:{port}"} | headers).items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body.encode() if body is not None else None)
    answer = connection.getresponse()
    found = (
        answer.status,
        {name.lower(): value for name, value in answer.headers.items()},
        answer.read().decode(),
    )
    connection.close()
    return found


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example",
        "localhost@evil.example", "evil", "xn--lcalhost-54a", "localhost evil", "[::1].evil.example", "[::1",
    ],
)  # fmt: skip
def test_a_name_that_was_bound_to_our_address_is_refused_everywhere(gateway: Any, host: str) -> None:
    port = gateway.settings["http_port"]
    for path in READ:
        status, _, body = asked(port, path, Host=host)
        assert status in (400, 403), (path, body)
    for path, body in BODIES.items():
        assert asked(port, path, body, Host=host, Content_Type="application/json")[0] in (400, 403)
    for path in ("/metrics", "/metrics/triton"):
        assert asked(gateway.settings["metrics_port"], path, Host=host)[0] in (400, 403)


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:8000", "localhost.", "a.localhost", "127.0.0.1", "[::1]:8000", "192.168.7.9:80"],
)
def test_loopback_and_addresses_are_names_of_ours(gateway: Any, host: str) -> None:
    assert asked(gateway.settings["http_port"], "/v1/models", Host=host)[0] == 200
    assert asked(gateway.settings["metrics_port"], "/metrics/", Host=host)[0] == 200


def test_a_name_of_the_settings_is_one_of_ours_and_the_others_are_told_how(named: Any) -> None:
    port = named.settings["http_port"]
    assert asked(port, "/v1/models", Host="chat.example.org:443")[0] == 200
    status, _, body = asked(port, "/v1/models", Host="sub.chat.example.org")
    assert (status, "deploy.hosts" in body) == (403, True)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "kind", ["text/plain", "text/plain;charset=UTF-8", "application/x-www-form-urlencoded", "multipart/form-data",
             "text/plain; application/json", "application/jsonp", ""],
)  # fmt: skip
def test_a_body_must_be_sent_as_json(gateway: Any, path: str, kind: str) -> None:
    status, _, body = asked(gateway.settings["http_port"], path, BODIES[path], Content_Type=kind)
    assert (status, "application/json" in body) == (415, True)


@pytest.mark.parametrize("path", BODIES)
def test_json_is_taken_by_its_type(gateway: Any, path: str) -> None:
    for kind in ("application/json", "Application/JSON; charset=utf-8"):
        status, _, body = asked(gateway.settings["http_port"], path, BODIES[path], Content_Type=kind)
        assert status == 200, body


def test_a_body_without_a_type_is_taken_of_tritons_client_and_of_no_browser(gateway: Any) -> None:
    """``new Blob([json])`` has none, and needs no leave beforehand."""
    port, path = gateway.settings["http_port"], "/v2/models/assistant/infer"
    assert asked(port, path, INFER)[0] == 200
    assert asked(port, path, INFER, Origin=f"http://127.0.0.1:{port}")[0] == 415
    assert asked(port, path, INFER, Sec_Fetch_Mode="no-cors")[0] == 415


@pytest.mark.parametrize("origin", [PAGE, "null", "http://localhost", "http://127.0.0.1:1", "file://", "x"])
def test_pages_of_other_origins_may_not_ask(gateway: Any, named: Any, origin: str) -> None:
    for started in (gateway, named):
        port = started.settings["http_port"]
        for path, body in BODIES.items():
            status, headers, _ = asked(port, path, body, Content_Type="application/json", Origin=origin)
            assert (status, headers.get("access-control-allow-origin")) == (403, None)
        assert asked(port, "/v1/models", Origin=origin)[0] == 403
        leave = {"Origin": origin, "Access_Control_Request_Method": "POST"}
        status, headers, _ = asked(port, "/v1/chat/completions", method="OPTIONS", **leave)
        assert (status, headers.get("access-control-allow-origin")) == (403, None)
        assert asked(started.settings["metrics_port"], "/metrics/", Origin=origin)[0] == 403
    cross = {"Content_Type": "application/json", "Sec_Fetch_Site": "cross-site"}
    assert asked(gateway.settings["http_port"], "/v2/models/assistant/generate", ASK, **cross)[0] == 403


def test_our_own_origin_may_ask(gateway: Any) -> None:
    port = gateway.settings["http_port"]
    ours = {"Origin": f"http://127.0.0.1:{port}", "Content_Type": "application/json"}
    assert asked(port, "/v2/models/assistant/generate", ASK, **ours)[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_named_origin_gets_leave_and_answers(named: Any, stream: bool) -> None:
    port, page = named.settings["http_port"], "https://app.example.org"
    leave = {
        "Origin": page,
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "authorization,content-type,x-stainless-os",
    }
    status, headers, _ = asked(port, "/v1/chat/completions", method="OPTIONS", **leave)
    assert (status, headers["access-control-allow-origin"]) == (200, page)
    assert "POST" in headers["access-control-allow-methods"]
    assert "x-stainless-os" in headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in headers
    body = json.dumps({**json.loads(CHAT), "stream": stream})
    status, headers, told = asked(
        port, "/v1/chat/completions", body, Origin=page, Content_Type="application/json"
    )
    assert (status, headers["access-control-allow-origin"]) == (200, page), told
    assert "origin" in headers["vary"].lower()


def test_a_named_origin_reads_errors_too_and_needs_a_key_where_there_are_keys(
    start: Start, tmp_path: Any
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("one: one-0123456789abcdef\n")
    page = "https://app.example.org"
    gateway = start(keys_file=str(keys), cors_origins=[page])
    refused = requests.get(f"{gateway.url}/v1/models", headers={"Origin": page}, timeout=10)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, page)
    leave = {"Origin": page, "Access-Control-Request-Method": "GET"}
    assert requests.options(f"{gateway.url}/v1/models", headers=leave, timeout=10).status_code == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"cors_origins": ["app.example.org"]}, {"cors_origins": ["https://app.example.org/"]},
        {"cors_origins": ["https://a b"]}, {"hosts": ["https://chat.example.org"]}, {"hosts": ["a:80"]}, {"hosts": [""]},
    ],
)  # fmt: skip
def test_what_is_no_origin_or_host_is_told(settings: Any) -> None:
    with pytest.raises(SettingsError, match=r"cors_origins|hosts"):
        check(Settings(**settings))
