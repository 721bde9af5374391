"""A client's HTTP connection: how long it may take over a request's head, and how it is cut.

uvicorn bounds neither a request's head nor the connections that have sent none.
"""

from __future__ import annotations

import asyncio
import functools
import resource
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0  # for a request's line and headers
HEAD_BYTES = 65_536
RESERVED = 64  # open files that are no client's and no request's


class Connection(HttpToolsProtocol):
    """One connection, of ``most`` at once.  ``state["cut"]`` of a request breaks it off."""

    def __init__(self, *arguments: Any, most: int, head_s: float = HEAD_S, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._most, self._head_s = most, head_s
        self._head_bytes = 0  # of the head that is being read
        self._in_head = True
        self._head_ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.abort()
        else:
            self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_read()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._wait_for_head()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > HEAD_BYTES:
            self.transport.abort()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["state"]["cut"] = self.transport.abort

    def on_headers_complete(self) -> None:
        self._head_is_read()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_head = True
        super().on_message_complete()

    def _wait_for_head(self) -> None:
        if self._head_ends is None:
            self._head_ends = self.loop.call_later(self._head_s, self.transport.abort)

    def _head_is_read(self) -> None:
        self._in_head, self._head_bytes = False, 0
        if self._head_ends is not None:
            self._head_ends.cancel()
            self._head_ends = None


def room(max_requests: int) -> int:
    """Connections that HTTP and gRPC may each have: a request opens one to the model besides."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(max_requests, (files - max_requests - RESERVED) // 2)


def bounded(most: int) -> Any:
    """What uvicorn makes connections with."""
    return functools.partial(Connection, most=most)
