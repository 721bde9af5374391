"""Asking the vLLM model beside this one, over the HTTP of the Triton that both live in.

Not from inside (BLS): where several answers are read at once, the stub of python_backend (r24.10 to r26.07) can stop for ever.
``ResponseIterator::Next`` waits for Python's lock while it holds the iterator's, ``Stub::ProcessBLSResponseDecoupled`` waits for the
iterator's while it holds the map's, and ``Stub::GetResponseIterator`` waits for the map's while it holds Python's.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Iterator
from typing import Any

PORT = int(os.environ.get("TRITON_PORT", "18000"))  # of Triton's HTTP, on loopback, as those who start it say
SILENT_S = 600.0  # longest wait for the next part of an answer


def ask(model: str, inputs: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The parts of a streamed answer as they come: outputs by name.

    Leaving early cuts the connection, which cancels the request.  Raises ``RuntimeError`` with the words of a refusal, and
    ``OSError`` or ``http.client.HTTPException`` where the answer breaks off.
    """
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=SILENT_S)
    try:
        body = json.dumps(inputs, allow_nan=False).encode("utf-8")
        connection.request(
            "POST", f"/v2/models/{model}/generate_stream", body, {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(_refusal(answer.read(), answer.status))
        for line in answer:
            if not line.startswith(b"data:"):
                continue
            found = json.loads(line[len(b"data:") :])
            if "error" in found:
                raise RuntimeError(str(found["error"]))
            yield {name: single(value) for name, value in found.items()}
    finally:
        connection.close()


def single(value: Any) -> Any:
    """The value of a tensor of one, however Triton writes it."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _refusal(body: bytes, status: int) -> str:
    try:
        return str(json.loads(body.strip().removeprefix(b"data:"))["error"])
    except (ValueError, KeyError, TypeError):
        return f"the server answered with status {status}"
