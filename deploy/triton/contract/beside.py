"""Asking another model of the same server (BLS), for targets whose engine is a Triton backend of its own.

https://github.com/triton-inference-server/python_backend#business-logic-scripting
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import triton_python_backend_utils as triton
from answers import Receiver, told
from parameters import RequestError


class Answering:
    """A thread for each request under way, at most ``most``: asking blocks between the pieces of an answer."""

    def __init__(self, most: int) -> None:
        self._closed = ""
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="answering")

    def start(self, receiver: Receiver, work: Callable[..., None], *values: Any) -> None:
        """Have ``work(*values, receiver)`` done.  Raises :class:`RequestError` once closed."""
        if self._closed:
            raise RequestError(self._closed)
        self._pool.submit(work, *values, receiver).add_done_callback(told(receiver, lambda: self._closed))

    def close(self) -> None:
        """Take no more requests; those under way are answered, those that wait are told."""
        self._closed = "the server is shutting down"
        self._pool.shutdown(wait=True, cancel_futures=True)


def ask(model: str, inputs: list[Any], outputs: list[str], request_id: str = "") -> Iterator[dict[str, Any]]:
    """The model's responses as arrays by name, one after the other.

    Blocks between them.  Leaving early cancels the request where this Triton can (25.03 and later).
    Raises ``RuntimeError`` with the words of an error response.
    """
    request = triton.InferenceRequest(
        model_name=model, inputs=inputs, requested_output_names=outputs, request_id=request_id
    )
    responses = request.exec(decoupled=True)
    try:
        for response in responses:
            if response.has_error():
                raise RuntimeError(response.error().message())
            tensors = response.output_tensors()
            if tensors:  # the last one may be a flag alone
                yield {tensor.name(): tensor.as_numpy() for tensor in tensors}
    finally:
        cancel = getattr(responses, "cancel", None)
        if cancel is not None:
            cancel()


def text(name: str, value: str) -> Any:
    """A tensor of one string."""
    return triton.Tensor(name, numpy.array([value.encode("utf-8")], dtype=object))


def array(name: str, value: Any, kind: Any) -> Any:
    """A tensor of numbers."""
    return triton.Tensor(name, numpy.array(value, dtype=kind))
