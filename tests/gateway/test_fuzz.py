"""Whatever is sent to Triton's protocols, the model lives, answers as before, and nobody waits."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import requests
import tritonclient.grpc.service_pb2 as messages
import tritonclient.grpc.service_pb2_grpc as stubs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.gateway.contract import INPUTS
from tests.gateway.conftest import Started

QUESTION = "What does `socket.bind` do?"
WITHIN_S = 10.0
MANY = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=40), st.integers(-3, 300)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
names = st.sampled_from(
    [*INPUTS, "sequence_id", "triton_enable_empty_final_response", "binary_data_output", "x"]
)
bodies = st.dictionaries(names, values, max_size=6)
asked = st.builds(
    lambda body, text: {"text_input": text, "max_tokens": 3, **body}, bodies, st.text(max_size=30)
)
shapes = st.lists(st.integers(-2, 5), max_size=3)


@pytest.fixture(scope="module")
def fuzzed(request: pytest.FixtureRequest) -> Any:
    """A gateway for all of a module's examples, and what the model says to a question."""
    return request.getfixturevalue("start_for_module")()


def said(gateway: Started) -> str:
    answer = gateway.generate(text_input=QUESTION, max_tokens=12, temperature=0.0)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["text_output"])


@pytest.fixture(scope="module")
def answer(fuzzed: Started) -> str:
    return said(fuzzed)


@pytest.fixture(autouse=True)
def the_model_is_as_before(fuzzed: Started, answer: str) -> Any:
    yield
    assert said(fuzzed) == answer
    metrics = fuzzed.metrics()
    assert 'lifecycle_requests_running{model="assistant"} 0.0' in metrics
    assert 'outcome="failed"' not in metrics


NUMBERS = [name for name, kind in INPUTS.items() if kind in ("INT32", "INT64", "FP32")]
HUGE = [
    "1" + "0" * 400,
    "-1" + "0" * 400,
    "9" * 5000,
    "1e999",
    "-1e999",
    str(2**63),
    str(2**64),
    "NaN",
    "Infinity",
]


@pytest.mark.parametrize("number", HUGE, ids=lambda number: number[:12])
@pytest.mark.parametrize("name", NUMBERS)
def test_a_huge_number_is_the_askers_mistake_in_every_field(fuzzed: Started, name: str, number: str) -> None:
    """It was status 500, and an alert."""
    body = f'{{"text_input": "a", "max_tokens": 2, "{name}": {number}}}'
    if name == "max_tokens":
        body = f'{{"text_input": "a", "max_tokens": {number}}}'
    assert post(fuzzed, "generate", body).status_code == 400
    tensor = f'{{"name": "{name}", "datatype": "{INPUTS[name]}", "shape": [1], "data": [{number}]}}'
    assert post(fuzzed, "infer", f'{{"inputs": [{tensor}]}}').status_code == 400
    shape = f'{{"name": "{name}", "datatype": "{INPUTS[name]}", "shape": [{number}], "data": [1]}}'
    assert post(fuzzed, "infer", f'{{"inputs": [{shape}]}}').status_code == 400


@pytest.mark.parametrize("number", HUGE, ids=lambda number: number[:12])
def test_a_huge_number_is_the_askers_mistake_in_every_field_of_openais(fuzzed: Started, number: str) -> None:
    turn = '"model": "assistant", "messages": [{"role": "user", "content": "a"}]'
    for name in (
        "temperature", "top_p", "top_k", "n", "seed", "max_tokens", "max_completion_tokens", "min_tokens", "presence_penalty",
        "frequency_penalty", "repetition_penalty", "top_logprobs", "user", "stream", "stop", "logit_bias",
    ):  # fmt: skip
        for url, text in (("chat/completions", turn), ("completions", '"model": "assistant", "prompt": "a"')):
            found = requests.post(
                f"{fuzzed.url}/v1/{url}",
                data=f'{{{text}, "{name}": {number}}}',
                headers={"Content-Type": "application/json"},
                timeout=WITHIN_S,
            )
            assert found.status_code == 400, (name, found.text[:200])


@pytest.mark.parametrize("length", ["9" * 30, "9" * 5000, "-1", "1e3", "+5", "5, 5", "0x5"])
def test_a_length_that_is_no_number_or_a_huge_one_is_refused(fuzzed: Started, length: str) -> None:
    with socket.create_connection(
        ("127.0.0.1", fuzzed.settings["http_port"]), timeout=WITHIN_S
    ) as connection:
        head = "POST /v2/models/assistant/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n{{}}".encode())
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # closed before all was read
            answer = connection.recv(65536)
    assert answer[:13] in (b"HTTP/1.1 400 ", b"HTTP/1.1 413 ", b""), answer[:200]


def post(gateway: Started, path: str, data: Any, kind: str = "application/json") -> requests.Response:
    began = time.monotonic()
    found = requests.post(
        f"{gateway.url}/v2/models/assistant/{path}",
        data=data,
        headers={"Content-Type": kind},
        timeout=WITHIN_S,
    )
    assert time.monotonic() - began < WITHIN_S
    return found


@MANY
@given(body=asked, path=st.sampled_from(["generate", "generate_stream"]))
def test_values_of_all_kinds(fuzzed: Started, body: dict[str, Any], path: str) -> None:
    body.pop("request_id", None)
    found = post(fuzzed, path, json.dumps(body))
    assert found.status_code in (200, 400), found.text
    if found.status_code == 200 and path == "generate":
        assert found.json()["finish_reason"] in ("stop", "length")


@MANY
@given(data=st.binary(max_size=300), path=st.sampled_from(["generate", "generate_stream", "infer"]))
def test_bytes_that_are_no_request(fuzzed: Started, data: bytes, path: str) -> None:
    assert post(fuzzed, path, data).status_code == 400


@MANY
@given(
    tensors=st.lists(
        st.fixed_dictionaries(
            {"name": names, "shape": shapes | scalars, "datatype": st.sampled_from(["BYTES", "INT32", "FP32", "X"])},
            optional={"data": values, "parameters": st.dictionaries(st.text(max_size=8), scalars, max_size=2)},
        ),
        max_size=3,
    )
)  # fmt: skip
def test_tensors_of_all_shapes(fuzzed: Started, tensors: list[dict[str, Any]]) -> None:
    found = post(fuzzed, "infer", json.dumps({"inputs": tensors}))
    assert found.status_code in (200, 400), found.text


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"text_input": "\xff\xfe"}', 400),  # not UTF-8
        (b'{"text_input": "\\ud800"}', 400),  # half a character
        (b"[" * 100_000, 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"text_input": "a", "max_tokens": ' + b"9" * 5000 + b"}", 400),
        (b'{"text_input": "a", "temperature": NaN}', 400),
        (b'{"text_input": "a", "temperature": 1e999}', 400),
        (b'{"text_input": "a", "max_tokens": -1}', 400),
        (b'{"text_input": "a", "seed": -5}', 400),
        (b'{"text_input": "' + b"a " * 500_000 + b'"}', 400),  # a megabyte: the model has no room
        (b'{"text_input": "' + b"a " * 5_000_000 + b'"}', 413),  # ten
        (b'{"text_input": "' + b"a" * 1_040_000 + b'"}', 400),
        (b'{"prompt": "' + b"\\u0000" * 10 + b'", "max_tokens": 2}', 200),
    ],
)
def test_bodies_that_were_chosen(fuzzed: Started, body: bytes, status: int) -> None:
    found = post(fuzzed, "generate", body)
    assert found.status_code == status, found.text[:300]
    assert found.json()


def test_a_shape_is_not_multiplied_without_end(fuzzed: Started) -> None:
    tensor = {"name": "text_input", "datatype": "BYTES", "shape": [9] * 300_000, "data": ["a"]}
    began = time.monotonic()
    found = post(fuzzed, "infer", json.dumps({"inputs": [tensor]}, separators=(",", ":")))
    assert (found.status_code, time.monotonic() - began < 1.0) == (400, True), found.text[:300]
    request = messages.ModelInferRequest(model_name="assistant")
    request.inputs.add(name="text_input", datatype="BYTES", shape=[9] * 300_000)
    with grpc.insecure_channel(fuzzed.grpc) as channel:
        began = time.monotonic()
        code = stubs.GRPCInferenceServiceStub(channel).ModelInfer.future(request, timeout=WITHIN_S).code()
    assert (code, time.monotonic() - began < 1.0) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_a_body_that_grows_on_the_way_is_bounded_too(fuzzed: Started) -> None:
    """Quotes are escaped twice for the model, once for each JSON around them."""
    turn = {"role": "user", "content": '"' * 500_000}
    body = json.dumps({"model": "assistant", "messages": [turn]})
    found = requests.post(
        f"{fuzzed.url}/v1/chat/completions",
        data=body,
        headers={"Content-Type": "application/json"},
        timeout=WITHIN_S,
    )
    assert found.status_code in (400, 413), found.text[:300]


@pytest.mark.parametrize(
    "headers",
    [
        {"Inference-Header-Content-Length": "7"},
        {"Content-Encoding": "gzip"},
        {"Transfer-Encoding": "chunked", "Content-Length": "5"},
        {"Expect": "100-continue"},
        {"triton-request-id": "x\ty"},
    ],
)
def test_headers_do_not_reach_triton(fuzzed: Started, headers: dict[str, str]) -> None:
    found = requests.post(
        f"{fuzzed.url}/v2/models/assistant/generate",
        data=json.dumps({"text_input": "a", "max_tokens": 2}),
        headers={"Content-Type": "application/json", **headers},
        timeout=WITHIN_S,
    )
    assert found.status_code in (200, 400), found.text


@MANY
@given(
    inputs=st.lists(
        st.tuples(names, st.sampled_from(["BYTES", "BOOL", "INT32", "INT64", "FP32", "UINT8", ""]), shapes), max_size=3
    ),
    raw=st.lists(st.binary(max_size=40), max_size=3),
    stream=st.booleans(),
)  # fmt: skip
def test_grpc_messages_of_all_kinds(fuzzed: Started, inputs: Any, raw: list[bytes], stream: bool) -> None:
    request = messages.ModelInferRequest(model_name="assistant", raw_input_contents=raw)
    for name, kind, shape in inputs:
        request.inputs.add(name=name, datatype=kind, shape=shape)
    with grpc.insecure_channel(fuzzed.grpc) as channel:
        stub = stubs.GRPCInferenceServiceStub(channel)
        if stream:
            for response in stub.ModelStreamInfer(iter([request]), timeout=WITHIN_S):
                assert response.error_message or response.infer_response.outputs
            return
        code = stub.ModelInfer.future(request, timeout=WITHIN_S).code()
        assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT), code


def test_nothing_leaks_from_one_request_to_another(fuzzed: Started) -> None:
    """Wrong requests among right ones, at once: each right one gets its own answer."""
    questions = [f"What is `socket.x{number}`?" for number in range(12)]

    def ask(question: str) -> str:
        found = fuzzed.generate(text_input=question, max_tokens=16, temperature=0.0)
        return str(found.json()["text_output"])

    wrong: list[Callable[[], Any]] = [
        lambda: post(fuzzed, "generate", b'{"text_input": "a", "max_tokens": -1}'),
        lambda: post(fuzzed, "generate", b'{"text_input": "' + b"a " * 2000 + b'"}'),
        lambda: post(fuzzed, "generate_stream", b"\xff"),
    ]
    alone = [ask(question) for question in questions]
    with ThreadPoolExecutor(16) as pool:
        together = [pool.submit(ask, question) for question in questions]
        others = [pool.submit(each) for each in wrong * 8]
        assert [each.result() for each in together] == alone
        assert {each.result().status_code for each in others} == {400}
