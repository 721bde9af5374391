"""The Triton python-backend model: requests in, streamed answers out.

    curl -s http://127.0.0.1:8000/v2/models/assistant/generate -H 'Content-Type: application/json' -d '{"text_input": "..."}'
    curl -sN .../generate_stream -H 'Content-Type: application/json' -d '{"text_input": "...", "stream": true}'

The model is decoupled: ``execute`` queues a request and returns; the engine's thread
answers through the request's response sender, token by token when ``stream`` is true and
once at the end otherwise.  ``serve.py`` beside this file is the target's own: it loads the engine.
https://github.com/triton-inference-server/python_backend#decoupled-mode
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy
import triton_python_backend_utils as triton
from answers import CANCELLED, Piece
from parameters import NAMES, Parameters, RequestError, parse
from serve import load

FINAL = triton.TRITONSERVER_RESPONSE_COMPLETE_FINAL
LEAST_LOGPROB = -9999.0
LOOK_S = 0.05  # between two looks whether a client has gone


class TritonPythonModel:
    """The class that Triton's python backend looks for."""

    def initialize(self, args: dict[str, str]) -> None:
        self.engine = load(args)
        self.running = Running()

    def execute(self, requests: list[Any]) -> None:
        for request in requests:
            sender = request.get_response_sender()
            try:
                parameters = parse(read_values(request))
                if parameters.cancel:
                    send(sender, self.running.cancel(parameters.request_id), "", flags=FINAL)
                    continue
                receiver = Receiver(sender, parameters, self.running)
                self.running.add(receiver)
                try:
                    self.engine.submit(parameters, receiver)
                except BaseException:
                    self.running.remove(receiver)
                    raise
            except RequestError as error:
                send_error(sender, str(error), asked_wrongly=True)
            except Exception as error:  # one request's trouble must not be the others'
                send_error(sender, f"the request failed: {error}")

    def finalize(self) -> None:
        self.engine.close()


class Running:
    """The requests under way that have a ``request_id``, so that they can be cancelled by it."""

    def __init__(self) -> None:
        self._receivers: dict[str, Receiver] = {}
        self._lock = threading.Lock()

    def add(self, receiver: Receiver) -> None:
        """Raises :class:`RequestError` for an id that a running request has."""
        with self._lock:
            if receiver.request_id in self._receivers:
                raise RequestError(f"a request with the request_id {receiver.request_id!r} is running")
            if receiver.request_id:
                self._receivers[receiver.request_id] = receiver

    def remove(self, receiver: Receiver) -> None:
        with self._lock:
            if self._receivers.get(receiver.request_id) is receiver:
                del self._receivers[receiver.request_id]

    def cancel(self, request_id: str) -> Piece:
        """End that request; the answer to who asked for it."""
        with self._lock:
            receiver = self._receivers.get(request_id)
        if receiver is None:
            raise RequestError(f"no request with the request_id {request_id!r} is running")
        receiver.cancelled = True
        return Piece(finish_reason=CANCELLED)


class Receiver:
    """Sends the pieces of one answer to its client."""

    def __init__(self, sender: Any, parameters: Parameters, running: Running) -> None:
        self.sender = sender
        self.stream = parameters.stream
        self.request_id = parameters.request_id
        self.running = running
        self.cancelled = False
        self.opened = False
        self.looked = time.monotonic()
        self.whole = Piece()

    def __call__(self, piece: Piece) -> bool:
        """Send; False when nobody wants the rest, or sending fails."""
        try:
            return self._send(piece)
        except Exception:  # its own trouble, and not the engine's
            self.running.remove(self)
            return False

    def _send(self, piece: Piece) -> bool:
        if piece.error:
            self.running.remove(self)
            send_error(self.sender, piece.error)
            return False
        if self._has_gone():
            self.running.remove(self)
            self.sender.send(flags=FINAL)
            return False
        if self.cancelled and not piece.last:
            piece.finish_reason = CANCELLED
        if not self.stream:
            self.whole.text += piece.text
            self.whole.logprobs += piece.logprobs
            if piece.last:
                piece.text, piece.logprobs = self.whole.text, self.whole.logprobs
        if piece.last:
            self.running.remove(self)
            send(self.sender, piece, piece.text, flags=FINAL)
        elif self.stream and (piece.text or piece.logprobs or not self.opened):
            self.opened = True
            send(self.sender, piece, piece.text, flags=0)
        return not piece.last

    def _has_gone(self) -> bool:
        """Whether the client has; asked now and then, since the question is a round trip to Triton's process.

        On every token it took two thirds of a small model's time (profiled with eight clients, 2026-11-22).
        """
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return False
        self.looked = now
        return self.is_cancelled()

    def is_cancelled(self) -> bool:
        """See :class:`answers.Receiver`."""
        return bool(self.sender.is_cancelled())


def read_values(request: Any) -> dict[str, Any]:
    """The inputs of a request by name, as plain Python values.

    Names that are no inputs of the model arrive as request parameters when they come
    over HTTP's generate endpoints; they are passed on so that they can be refused.
    Raises :class:`RequestError` for text that is not UTF-8 or a wrong number of values.
    """
    values: dict[str, Any] = dict(json.loads(request.parameters() or "{}"))
    for name in values:
        if name in NAMES:
            raise RequestError(
                f"{name} is an input of the model, and was given as a parameter of the request"
            )
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


def send(sender: Any, piece: Piece, text: str, flags: int) -> None:
    """Send a Triton response of one piece of an answer.

    The tensors are held here until it is sent: the stub drops those that a request did not name without Python's lock,
    and must not be the last that has them.
    """
    # JSON has no infinities: a token that all but cannot be has the value that vLLM and OpenAI give it.
    logprobs = [[each.token, max(LEAST_LOGPROB, each.logprob)] for each in piece.logprobs]
    tensors = [
        _text("text_output", text),
        _text("finish_reason", piece.finish_reason),
        _count("prompt_tokens", piece.prompt_tokens),
        _count("completion_tokens", piece.completion_tokens),
        _text("logprobs_output", strict_json(logprobs) if logprobs else ""),
    ]
    sender.send(triton.InferenceResponse(tensors), flags=flags)


def strict_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _text(name: str, value: str) -> Any:
    return triton.Tensor(name, numpy.array([value.encode("utf-8", "replace")], dtype=object))


def _count(name: str, value: int) -> Any:
    return triton.Tensor(name, numpy.array([value], dtype=numpy.int32))


def send_error(sender: Any, text: str, *, asked_wrongly: bool = False) -> None:
    """End a request with an error that its client can read; whose fault it is becomes the HTTP status."""
    # Triton adds the class only once this module is loaded.
    code = triton.TritonError.INVALID_ARG if asked_wrongly else triton.TritonError.INTERNAL
    sender.send(triton.InferenceResponse(error=triton.TritonError(text, code)), flags=FINAL)
