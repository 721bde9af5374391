"""Answering by threads, for targets whose engine is a Triton backend of its own; and asking it from inside (BLS).

https://github.com/triton-inference-server/python_backend#business-logic-scripting
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
import triton_python_backend_utils as triton
from answers import Receiver, told
from parameters import RequestError


class Finished:
    """Iterators over responses that were read to their end, kept until Triton's own threads have let go of them.

    The stub shares an iterator, with the arrays of all its responses, with two threads that do not hold Python's lock: the
    one that brings responses, and the one that takes a finished iterator out of the stub's map (``Stub::SendCleanupId``,
    python_backend r24.10 to r26.07).  Where Python let go first, that thread frees the arrays, two threads are in Python's
    allocator at once, and the process ends with a segmentation fault (seen in 2 of 5 runs of the contract's tests).

    The second thread does what it is asked in turn, takes the map's lock, under which the first has let go, and is asked
    whether a request is cancelled, too: an answer to that question says that it is done with all iterators before.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._lock = threading.Lock()

    def keep(self, responses: Any) -> None:
        """Of an iterator that has given its last response."""
        with self._lock:
            self._kept.append(responses)

    def let_go(self, is_cancelled: Callable[[], bool]) -> None:
        """Drop what was kept before this call.  ``is_cancelled`` asks about a request that has not been answered."""
        with self._lock:
            kept, self._kept = self._kept, []
        if kept and is_cancelled():  # known since before, maybe, and nobody was asked
            with self._lock:
                self._kept += kept

    def leave(self) -> None:
        """What is kept stays to the end of the process: when the interpreter ends, the stub's shared memory has gone."""
        for responses in self._kept:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(responses))


class Turns:
    """Many may read answers at once, or many begin theirs, and never one while others do the other; each side gets its turn.

    Reading, the stub waits for Python's lock while it holds an iterator's (``ResponseIterator::Next``).  Who brings responses waits
    for the iterator's while it holds the map's (``Stub::ProcessBLSResponseDecoupled``).  Who has begun waits for the map's
    while it holds Python's (``Stub::GetResponseIterator``).  All three at once, and the process stands still for ever
    (python_backend r24.10 to r26.07; seen after some thousands of short answers, 24 at a time).
    """

    READ, BEGIN = 0, 1

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._side = self.READ  # whose turn it is
        self._inside = 0
        self._waiting = [0, 0]
        self._passes = 0  # of those that waited when their turn came, whoever waits by now

    @contextlib.contextmanager
    def of(self, side: int) -> Iterator[None]:
        """A turn of this side."""
        with self._changed:
            self._waiting[side] += 1
            self._changed.wait_for(lambda: self._may(side))
            self._waiting[side] -= 1
            self._passes -= self._passes > 0
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if not self._inside and not self._passes and self._waiting[1 - side]:
                    self._side, self._passes = 1 - side, self._waiting[1 - side]
                self._changed.notify_all()

    def _may(self, side: int) -> bool:
        if not self._inside and not self._passes and not self._waiting[1 - side]:
            self._side = side
        return self._side == side and (self._passes > 0 or not self._waiting[1 - side])


FINISHED, TURNS = Finished(), Turns()


class Answering:
    """A thread for each request under way, at most ``most``: asking blocks between the pieces of an answer."""

    def __init__(self, most: int) -> None:
        self._closed = ""
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="answering")

    def start(self, receiver: Receiver, work: Callable[..., None], *values: Any) -> None:
        """Have ``work(*values, receiver)`` done.  Raises :class:`RequestError` once closed."""
        if self._closed:
            raise RequestError(self._closed)
        answer = self._pool.submit(self._do, work, values, receiver)
        answer.add_done_callback(told(receiver, lambda: self._closed))

    @staticmethod
    def _do(work: Callable[..., None], values: tuple[Any, ...], receiver: Receiver) -> None:
        FINISHED.let_go(receiver.is_cancelled)
        work(*values, receiver)

    def close(self) -> None:
        """Take no more requests; those under way are answered, those that wait are told."""
        self._closed = "the server is shutting down"
        self._pool.shutdown(wait=True, cancel_futures=True)
        FINISHED.leave()


def ask(model: str, inputs: list[Any], outputs: list[str], request_id: str = "") -> Iterator[dict[str, Any]]:
    """The model's responses as arrays by name, one after the other.

    Blocks between them, and until the last one has come where its reader leaves early: the stub never forgets an iterator
    that was not read to its end.  Leaving early cancels the request where this Triton can (25.03 and later).
    Raises ``RuntimeError`` with the words of an error response.
    """
    request = triton.InferenceRequest(
        model_name=model, inputs=inputs, requested_output_names=outputs, request_id=request_id
    )
    with TURNS.of(Turns.BEGIN):
        responses = request.exec(decoupled=True)  # until the first response has come
    try:
        while (response := following(responses)) is not None:
            if response.has_error():
                raise RuntimeError(response.error().message())
            tensors = response.output_tensors()
            if tensors:  # the last one may be a flag alone
                yield {tensor.name(): tensor.as_numpy() for tensor in tensors}
    finally:
        cancel = getattr(responses, "cancel", None)
        if cancel is not None:
            cancel()
        while following(responses) is not None:
            pass
        FINISHED.keep(responses)


def following(responses: Any) -> Any:
    """The next response, None after the last."""
    with TURNS.of(Turns.READ):
        return next(responses, None)


def array(name: str, value: Any, kind: Any) -> Any:
    """A tensor of numbers."""
    return triton.Tensor(name, numpy.array(value, dtype=kind))
