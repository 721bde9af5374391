"""The Triton python-backend model: requests in, streamed answers out.

    curl -s http://127.0.0.1:8000/v2/models/assistant/generate -d '{"text_input": "..."}'
    curl -sN .../generate_stream -d '{"text_input": "...", "stream": true}'

The model is decoupled: ``execute`` queues a request and returns; the engine's thread
answers through the request's response sender, token by token when ``stream`` is true and
once at the end otherwise.
https://github.com/triton-inference-server/python_backend#decoupled-mode
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import triton_python_backend_utils as triton
from engine import Engine, Piece
from parameters import NAMES, RequestError, parse

FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """The class that Triton's python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        self.engine = Engine(
            Path(args["model_repository"]) / args["model_version"] / "openvino",
            kv_cache_gb=int(parameters["kv_cache_gb"]),
            threads=int(os.environ.get("LIFECYCLE_THREADS", "2")),
            max_new_tokens=int(parameters["max_new_tokens"]),
        )

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                parameters = parse(read_values(request))
                self.engine.submit(parameters, Receiver(sender, parameters.stream))
            except (RequestError, RuntimeError) as error:
                send_error(sender, str(error))

    def finalize(self) -> None:
        self.engine.close()


class Receiver:
    """Sends the pieces of one answer to its client."""

    def __init__(self, sender: Any, stream: bool) -> None:
        self.sender = sender
        self.stream = stream
        self.text = ""

    def __call__(self, piece: Piece) -> bool:
        """Send; False when the client is gone."""
        if piece.error:
            send_error(self.sender, piece.error)
            return False
        if self.sender.is_cancelled():
            self.sender.send(flags=FINAL)
            return False
        self.text += piece.text
        if self.stream and (piece.text or piece.last):
            self.sender.send(response(piece, piece.text), flags=FINAL if piece.last else 0)
        elif piece.last:
            self.sender.send(response(piece, self.text), flags=FINAL)
        return True


def read_values(request: Any) -> dict[str, Any]:
    """The inputs of a request by name, as plain Python values.

    Names that are no inputs of the model arrive as request parameters when they come
    over HTTP's generate endpoints; they are passed on so that they can be refused.
    Raises :class:`RequestError` for text that is not UTF-8 or a wrong number of values.
    """
    values: dict[str, Any] = dict(json.loads(request.parameters() or "{}"))
    for name in NAMES:
        tensor = triton.get_input_tensor_by_name(request, name)
        if tensor is None:
            continue
        items = tensor.as_numpy().reshape(-1).tolist()
        try:
            items = [item.decode("utf-8") if isinstance(item, bytes) else item for item in items]
        except UnicodeDecodeError:
            raise RequestError(f"{name} is not UTF-8 text") from None
        if name != "stop_words" and len(items) != 1:
            raise RequestError(f"{name} takes one value, not {len(items)}")
        values[name] = items if name == "stop_words" else items[0]
    return values


def response(piece: Piece, text: str) -> Any:
    """A Triton response of one piece of an answer."""
    return triton.InferenceResponse(
        [
            triton.Tensor("text_output", numpy.array([text.encode("utf-8")], dtype=object)),
            triton.Tensor("finish_reason", numpy.array([piece.finish_reason.encode("utf-8")], dtype=object)),
            triton.Tensor("prompt_tokens", numpy.array([piece.prompt_tokens], dtype=numpy.int32)),
            triton.Tensor("completion_tokens", numpy.array([piece.completion_tokens], dtype=numpy.int32)),
        ]
    )


def send_error(sender: Any, text: str) -> None:
    """End a request with an error that its client can read."""
    sender.send(triton.InferenceResponse(error=triton.TritonError(text)), flags=FINAL)
