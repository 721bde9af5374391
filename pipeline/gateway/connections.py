"""A client's HTTP connection: how long it may take over a request's head, and how it is cut.

uvicorn bounds neither a request's head nor the connections that have sent none.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import resource
from collections import Counter
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 10.0  # for a request's line and headers
HEAD_BYTES = 65_536
RESERVED = 64  # open files that are no client's and no request's
SPARE = 10  # a tenth of gRPC's connections is kept free for those who come next
FILES = 65_536  # open files at most


class Connection(HttpToolsProtocol):
    """One connection, of ``most`` at once and of ``share`` of an address; ``peers`` counts them.  ``state["cut"]`` of a request breaks it off."""

    def __init__(
        self, *arguments: Any, most: int, share: int, peers: Counter[str], head_s: float = HEAD_S, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self._most, self._share, self._head_s = most, share, head_s
        self._peers, self._peer = peers, ""
        self._since = self.loop.time()
        self._head_bytes = 0  # of the head that is being read
        self._in_head = True
        self._head_ends: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._peer = peer_of(transport)
        self._peers[self._peer] += 1
        alike = self._peer if self._peer and self._peers[self._peer] > self._share else None
        if alike is not None or len(self.connections) > self._most:
            self._idle(alike).transport.abort()
        if transport.is_closing():
            return
        self._wait_for_head()

    def _idle(self, peer: str | None) -> Connection:
        """Who has to go for us: of this peer, or of all, the oldest that asks nothing now; ourselves where all ask."""
        others = [
            each
            for each in self.connections
            if isinstance(each, Connection)
            and each is not self
            and each._in_head
            and (each.cycle is None or each.cycle.response_complete)
            and not each.transport.is_closing()
            and (peer is None or each._peer == peer)
        ]
        return min(others, key=lambda each: each._since, default=self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._peers[self._peer] -= 1
        if not self._peers[self._peer]:
            del self._peers[self._peer]
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


def take_files() -> None:
    """Let this process have as many open files as it may: many systems give fewer, for old programs' sake."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def room(max_requests: int) -> int:
    """Connections that HTTP and gRPC may each have: a request opens one to the model besides."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(max_requests, (files - max_requests - RESERVED) // 2)


def share(most: int, max_requests: int) -> int:
    """Of ``most`` connections those that one address may have: half, and enough for all requests."""
    return max(max_requests, most // 2)


def peer_of(transport: Any) -> str:
    """The address at the other end; empty on a UNIX socket."""
    found = transport.get_extra_info("peername")
    return network(found[0]) if isinstance(found, tuple) else ""


def network(address: str) -> str:
    """Those addresses that count as one: who has one of IPv6 has the other 2**64 of its network as well."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address) or found.is_loopback:
        return str(found)
    mapped = found.ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network((found, 64), strict=False))


def bounded(max_requests: int) -> Any:
    """What uvicorn makes connections with."""
    most = room(max_requests)
    return functools.partial(Connection, most=most, share=share(most, max_requests), peers=Counter())
