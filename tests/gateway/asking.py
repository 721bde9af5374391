"""Asking a gateway of a test's own, and waiting for what it does."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import requests
import tritonclient.grpc as triton

from tests.gateway.conftest import Started

Start = Callable[..., Started]
QUESTION = "What does `socket.bind` do?"
LONG = {"text_input": QUESTION, "max_tokens": 200, "ignore_end": True}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def stream(gateway: Started, **body: Any) -> Iterator[dict[str, Any]]:
    """Events of a streamed answer."""
    url = f"{gateway.url}/v2/models/assistant/generate_stream"
    with requests.post(url, json={**body, "stream": True}, stream=True, timeout=30) as answer:
        for line in answer.iter_lines():
            if line:
                yield json.loads(line.removeprefix(b"data:"))


def waiting(gateway: Started, count: int) -> None:
    """Until so many requests wait for their first token."""
    deadline = time.monotonic() + 10
    while f'lifecycle_requests_waiting{{model="assistant"}} {count}.0' not in gateway.metrics():
        assert time.monotonic() < deadline, gateway.metrics()
        time.sleep(0.05)


def full(gateway: Started) -> None:
    """Until no further request is taken."""
    deadline = time.monotonic() + 3
    time.sleep(0.5)
    while gateway.generate(text_input=QUESTION, max_tokens=2).status_code != 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ready_again(gateway: Started) -> None:
    """Until a probe has passed."""
    deadline = time.monotonic() + 20
    while requests.get(f"{gateway.url}/ready", timeout=5).status_code != 200:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def infer_input(text: str = QUESTION) -> Any:
    tensor = triton.InferInput("text_input", [1], "BYTES")
    tensor.set_data_from_numpy(numpy.array([text.encode()], dtype=object))
    return tensor
