"""How much and how long: limits, health, leaving and what is counted, in front of a real Triton."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
import tritonclient.grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from pipeline.gateway.kserve_grpc import address
from tests.gateway.asking import (
    LONG,
    QUESTION,
    Start,
    bearer,
    full,
    infer_input,
    ready_again,
    stream,
    waiting,
)
from tests.gateway.deploy_miniature import KEYS


def test_bodies_are_bounded_however_they_come(start: Start) -> None:
    gateway = start(limits={"max_body_bytes": 10_000})
    for path, said in (("/v1/completions", "error"), ("/v2/models/assistant/generate", "error")):
        url = gateway.url + path
        body = json.dumps({"model": "assistant", "prompt": "a" * 20_000}).encode()
        headers = {"Content-Type": "application/json"}
        whole = requests.post(url, data=body, headers=headers, timeout=10)
        chunked = requests.post(url, data=iter([body[:6000], body[6000:]]), headers=headers, timeout=10)
        for answer in (whole, chunked):
            assert answer.status_code == 413, answer.text
            assert "10000 bytes" in json.dumps(answer.json()[said])
    with (
        triton.InferenceServerClient(gateway.grpc) as client,
        pytest.raises(Exception, match="RESOURCE_EXHAUSTED"),
    ):
        client.infer("assistant", [infer_input("a" * 20_000)])
    assert gateway.generate(text_input=QUESTION, max_tokens=4).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(start: Start) -> None:
    gateway = start(limits={"body_s": 0.5})
    connection = http.client.HTTPConnection("127.0.0.1", gateway.settings["http_port"], timeout=10)
    connection.putrequest("POST", "/v1/completions")
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", "100")
    connection.endheaders(b'{"model": ')
    began = time.monotonic()
    assert connection.getresponse().status == 408
    assert time.monotonic() - began < 5


def test_a_key_has_so_many_requests_a_minute(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("".join(f"{name}: {key}\n" for name, key in KEYS.items()))
    gateway = start(keys_file=str(file), limits={"requests_per_minute": 3})
    ask = {"text_input": QUESTION, "max_tokens": 2}
    statuses = [gateway.generate(headers=bearer(KEYS["alice"]), **ask).status_code for _ in range(4)]
    assert statuses == [200, 200, 200, 429]
    refused = gateway.generate(headers=bearer(KEYS["alice"]), **ask)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert "3 requests a minute" in refused.json()["error"]
    assert gateway.generate(headers=bearer(KEYS["bob"]), **ask).status_code == 200
    assert 'lifecycle_refusals_total{reason="rate_limited"} 2.0' in gateway.metrics()


def test_nobody_says_himself_where_he_is(start: Start) -> None:
    gateway = start(limits={"requests_per_minute": 2})
    ask = {"text_input": QUESTION, "max_tokens": 2}
    for status in (200, 200, 429):
        headers = {"X-Forwarded-For": f"10.0.0.{status}"}
        assert gateway.generate(headers=headers, **ask).status_code == status
    with (
        triton.InferenceServerClient(gateway.grpc) as client,
        pytest.raises(Exception, match="2 requests a minute"),
    ):
        client.infer("assistant", [infer_input()])


@pytest.mark.parametrize(
    ("peer", "name"), [("ipv4:127.0.0.1:50212", "127.0.0.1"), ("ipv6:%5B::1%5D:50212", "::1")]
)
def test_an_address_has_one_name(peer: str, name: str) -> None:
    assert address(peer) == name


def test_who_does_not_read_is_cut_off(start: Start) -> None:
    """A small window at the client: what is sent to it soon has no place any more."""
    gateway = start(limits={"max_requests": 8, "request_s": 2.0}, probe_every_s=60.0)
    body = json.dumps(
        {
            "model": "assistant", "prompt": QUESTION, "n": 8, "max_tokens": 200, "ignore_eos": True, "stream": True,
            "logprobs": 0, "stop": "never said",
        }
    ).encode()  # fmt: skip
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        slow.connect(("127.0.0.1", gateway.settings["http_port"]))
        slow.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        full(gateway)
        time.sleep(4.5)
        assert gateway.generate(text_input=QUESTION, max_tokens=2).status_code == 200


def test_a_grpc_client_that_does_not_read_is_cut_off(start: Start) -> None:
    gateway = start(limits={"max_requests": 4, "request_s": 2.0}, probe_every_s=60.0)
    request = service_pb2.ModelInferRequest(model_name="assistant")
    for name, kind, contents in (
        ("text_input", "BYTES", {"bytes_contents": [QUESTION.encode()]}),
        ("stream", "BOOL", {"bool_contents": [True]}),
        ("ignore_end", "BOOL", {"bool_contents": [True]}),
        ("max_tokens", "INT32", {"int_contents": [200]}),
    ):
        request.inputs.add(name=name, datatype=kind, shape=[1], contents=contents)
    options = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    with grpc.insecure_channel(gateway.grpc, options=options) as channel:
        call = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelStreamInfer(iter([request] * 300))
        full(gateway)
        time.sleep(4.5)
        assert gateway.generate(text_input=QUESTION, max_tokens=2).status_code == 200
        call.cancel()


def test_a_head_is_bounded(start: Start) -> None:
    gateway = start()
    with socket.create_connection(("127.0.0.1", gateway.settings["http_port"]), timeout=10) as client:
        client.sendall(b"GET /ready HTTP/1.1\r\nX: ")
        with contextlib.suppress(OSError):
            for _ in range(16):
                client.sendall(b"a" * 65_536)
                time.sleep(0.02)
            assert not client.recv(1)


def test_so_many_requests_are_taken_at_once(start: Start) -> None:
    gateway = start(limits={"max_requests": 2}, probe_every_s=60.0)
    with ThreadPoolExecutor(2) as pool:
        gateway.wire.hold()
        held = [pool.submit(gateway.generate, **LONG) for _ in range(2)]
        waiting(gateway, 2)
        refused = gateway.generate(**LONG)
        gateway.wire.release()
        assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
        assert [each.result().status_code for each in held] == [200, 200]
    assert gateway.generate(**LONG).status_code == 200
    assert 'lifecycle_requests_waiting{model="assistant"} 0.0' in gateway.metrics()


def test_an_answer_is_no_longer_than_allowed(start: Start) -> None:
    gateway = start(limits={"max_tokens": 8})
    refused = gateway.generate(text_input=QUESTION, max_tokens=9)
    assert (refused.status_code, refused.json()["error"]) == (
        400, "max_tokens is 9; this server gives 8 at most",
    )  # fmt: skip
    assert gateway.generate(text_input=QUESTION, max_tokens=8).status_code == 200


def test_a_token_that_does_not_come_is_not_waited_for(start: Start) -> None:
    gateway = start(limits={"between_tokens_s": 0.6, "first_token_s": 0.6}, probe_every_s=60.0)
    gateway.wire.hold()
    began = time.monotonic()
    late = gateway.generate(**LONG)
    assert (late.status_code, late.json()["error"]) == (504, "the first token did not come within 0.6 s")
    assert time.monotonic() - began < 6
    gateway.wire.release()
    events = stream(gateway, **LONG)
    assert next(events)["completion_tokens"] == 0
    gateway.wire.hold()
    assert "token did not come within" in list(events)[-1]["error"]
    gateway.wire.release()
    assert gateway.generate(text_input=QUESTION, max_tokens=4).status_code == 200


def test_a_model_that_stops_answering_is_seen_and_nobody_waits_for_it(start: Start) -> None:
    limits = {"first_token_s": 3.0, "between_tokens_s": 1.0}
    gateway = start(probe_every_s=0.3, probe_timeout_s=0.5, limits=limits)
    with ThreadPoolExecutor(1) as pool:
        gateway.wire.hold()
        began = time.monotonic()
        # It has been silent when the first client comes: nobody else was asking then.
        while requests.get(f"{gateway.url}/ready", timeout=5).status_code == 200:
            assert time.monotonic() - began < 20
            time.sleep(0.1)
        waited = gateway.generate(**LONG)
        assert waited.status_code == 503
        gateway.wire.release()
        ready_again(gateway)
        gateway.wire.hold()
        began = time.monotonic()
        first = pool.submit(gateway.generate, **LONG)
        time.sleep(1.5)
        second = gateway.generate(**LONG)
        assert first.result().status_code in (502, 504)
        assert second.status_code == 502
        assert "the model stopped answering: no token within 0.5 s" in second.json()["error"]
        assert time.monotonic() - began < 8
    assert requests.get(f"{gateway.url}/ready", timeout=5).status_code == 503
    refused = gateway.generate(**LONG)
    assert (refused.status_code, "does not answer" in refused.json()["error"]) == (503, True)
    gateway.wire.release()
    ready_again(gateway)
    assert gateway.generate(text_input=QUESTION, max_tokens=4).status_code == 200


def test_a_model_that_keeps_a_probe_waiting_is_not_given_up(start: Start) -> None:
    """As one does that serves one request after another, or reads a long prompt."""
    gateway = start(probe_every_s=0.3, probe_timeout_s=0.5)
    with ThreadPoolExecutor(1) as pool:
        gateway.wire.hold()
        held = pool.submit(gateway.generate, **LONG)
        time.sleep(2.5)
        assert requests.get(f"{gateway.url}/ready", timeout=5).status_code == 200
        assert "lifecycle_probe_failures_total{" in gateway.metrics()
        gateway.wire.release()
        assert held.result().status_code == 200


def test_several_requests_in_one_are_admitted_together(start: Start) -> None:
    gateway = start(limits={"requests_per_minute": 5, "max_tokens": 8})

    def ask(**body: Any) -> requests.Response:
        whole = {"model": "assistant", "prompt": QUESTION, **body}
        return requests.post(f"{gateway.url}/v1/completions", json=whole, timeout=10)

    for streamed in (False, True):
        never = ask(n=6, stream=streamed)  # counts for nothing
        assert (never.status_code, never.json()["error"]["param"]) == (400, "n")
    assert ask(n=4).json()["usage"]["completion_tokens"] <= 4 * 8
    assert ask(n=2).status_code == 429
    assert ask().status_code == 200
    assert ask().status_code == 429
    assert ask(nonsense=1).status_code == 400
    assert ask(model="nobody").status_code == 404
    found = gateway.metrics()
    for reason, count in (("rate_limited", 2), ("invalid", 3), ("not_found", 1)):
        assert f'lifecycle_refusals_total{{reason="{reason}"}} {count}.0' in found, found


def test_a_client_is_not_told_all_of_what_it_said(start: Start) -> None:
    """gRPC's clients could not even read it: an error goes over in a header."""
    gateway = start()
    name = "ä" * 20_000
    with triton.InferenceServerClient(gateway.grpc) as client:
        with pytest.raises(InferenceServerException, match="the model") as told:
            client.infer(name, [infer_input()])
        assert told.value.status() == "StatusCode.NOT_FOUND"
        assert len(told.value.message()) < 1000
    assert len(gateway.generate(text_input="a", **{name: 1}).json()["error"]) < 1000


def test_kserve_gives_the_outputs_that_are_asked_for(start: Start) -> None:
    gateway = start()
    tensor = {"name": "text_input", "shape": [1], "datatype": "BYTES", "data": [QUESTION]}

    def infer(**body: Any) -> requests.Response:
        url = f"{gateway.url}/v2/models/assistant/infer"
        return requests.post(url, json={"inputs": [tensor], **body}, timeout=10)

    one = {"name": "text_output", "parameters": {"binary_data": False}}
    assert [each["name"] for each in infer(outputs=[one]).json()["outputs"]] == ["text_output"]
    for wrong in (
        {"outputs": [{"name": "text_input"}]},
        {"outputs": [{**one, "parameters": {"classification": 2}}]},
        {"outputs": [[]]},
        {"parameters": {"binary_data_output": True}},
        {"parameters": {"sequence_id": 1}},
    ):
        assert infer(**wrong).status_code == 400, wrong
    with triton.InferenceServerClient(gateway.grpc) as client:
        found = client.infer(
            "assistant", [infer_input()], outputs=[triton.InferRequestedOutput("finish_reason")]
        )
        assert [each.name for each in found.get_response().outputs] == ["finish_reason"]
        assert found.as_numpy("finish_reason")[0] in (b"stop", b"length")
        with pytest.raises(Exception, match="unknown output 'nothing'"):
            client.infer("assistant", [infer_input()], outputs=[triton.InferRequestedOutput("nothing")])


# ---------------------------------------------------------------------------- leaving


def test_what_is_under_way_is_finished_before_it_goes(start: Start) -> None:
    gateway = start(probe_every_s=60.0)
    got: queue.Queue[Any] = queue.Queue()

    def follow() -> None:
        for event in stream(gateway, **LONG):
            got.put(event)
        got.put(None)

    gateway.wire.hold()
    thread = threading.Thread(target=follow)
    thread.start()
    waiting(gateway, 1)
    deadline = time.monotonic() + 10
    gateway.process.send_signal(signal.SIGTERM)
    while requests.get(f"{gateway.url}/ready", timeout=5).status_code == 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert gateway.generate(**LONG).status_code == 503
    gateway.wire.release()
    thread.join(timeout=30)
    events = list(iter(got.get, None))
    assert events[-1]["finish_reason"] == "length"
    assert events[-1]["completion_tokens"] == LONG["max_tokens"]
    assert gateway.process.wait(timeout=20) == 0


def test_what_is_not_finished_in_time_is_given_up(start: Start) -> None:
    gateway = start(limits={"drain_s": 1.0}, probe_every_s=60.0)
    with ThreadPoolExecutor(1) as pool:
        gateway.wire.hold()
        held = pool.submit(gateway.generate, **LONG)
        waiting(gateway, 1)
        began = time.monotonic()
        gateway.process.send_signal(signal.SIGTERM)
        assert (held.result().status_code, held.result().json()["error"]) == (
            502, "the gateway is shutting down",
        )  # fmt: skip
    assert gateway.process.wait(timeout=20) == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in gateway.log.read_text()


# --------------------------------------------------------------------------- metrics


def test_metrics_count_what_was_done(start: Start) -> None:
    gateway = start()
    answers = [gateway.generate(text_input=QUESTION, max_tokens=10, ignore_end=True).json() for _ in range(3)]
    assert gateway.generate(text_input="", max_tokens=10).status_code == 400
    for event in stream(gateway, **LONG, stop_words=["never said"]):  # which has tokens come one by one
        if event["completion_tokens"] > 3:
            break  # the client goes
    deadline = time.monotonic() + 10
    while 'outcome="cancelled"} 1.0' not in gateway.metrics():
        assert time.monotonic() < deadline, gateway.metrics()
        time.sleep(0.05)
    found = gateway.metrics()
    prompt = sum(answer["prompt_tokens"] for answer in answers)
    for line in (
        'lifecycle_requests_total{api="generate",model="assistant",outcome="ok"} 3.0',
        'lifecycle_requests_total{api="generate",model="assistant",outcome="refused"} 1.0',
        'lifecycle_time_to_first_token_seconds_count{model="assistant"} 4.0',
        'lifecycle_requests_running{model="assistant"} 0.0',
        'lifecycle_requests_waiting{model="assistant"} 0.0',
        "lifecycle_version_healthy{identity=",
    ):
        assert line in found, found
    values = {line.split(" ")[0]: float(line.split(" ")[1]) for line in found.splitlines() if line[0] != "#"}
    assert values['lifecycle_prompt_tokens_total{model="assistant"}'] == prompt + answers[0]["prompt_tokens"]
    assert 34 <= values['lifecycle_generated_tokens_total{model="assistant"}'] < 230
    own = requests.get(f"http://127.0.0.1:{gateway.settings['metrics_port']}/metrics/triton", timeout=10)
    assert "nv_inference_count" in own.text
