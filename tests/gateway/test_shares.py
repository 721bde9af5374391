"""Nobody's idle connections lock the others out: a share for each address, and an end for what is idle."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
import tritonclient.grpc.service_pb2 as messages
import tritonclient.grpc.service_pb2_grpc as stubs

from pipeline.gateway import connections, kserve_grpc
from pipeline.gateway.settings import Settings
from pipeline.gateway.shares import Shares
from tests.gateway.scripted import ScriptedService
from tests.miniature import free_ports


def connected(port: int, source: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=5, source_address=(source, 0))


def open_(sockets: list[socket.socket]) -> int:
    """How many have not been ended by the other side."""
    count = 0
    for each in sockets:
        each.setblocking(False)
        try:
            while each.recv(65536):  # the server's own greeting
                pass
        except BlockingIOError:
            count += 1
        except OSError:
            pass
    return count


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with closing(socket.create_server(("127.0.0.1", 0), backlog=64)) as found:
        yield found


@pytest.mark.parametrize("bounds", [{"most": 3, "total": 99}, {"most": 99, "total": 5}])
def test_an_address_keeps_its_share_and_the_longest_silent_end(
    listener: socket.socket, bounds: dict[str, int]
) -> None:
    port = listener.getsockname()[1]
    shares = Shares(port, **bounds)
    mine: list[socket.socket] = []
    taken: list[socket.socket] = []

    def more(count: int, source: str) -> None:
        for _ in range(count):
            mine.append(connected(port, source))
            taken.append(listener.accept()[0])

    more(3, "127.0.0.1")
    assert shares.look() == 0
    time.sleep(0.1)
    more(3, "127.0.0.1")
    time.sleep(0.1)
    more(2, "127.0.0.2")
    mine[1].sendall(b"still here")  # an old one that is used, and one that has just come
    more(1, "127.0.0.1")
    time.sleep(0.05)
    assert shares.look() == 4
    time.sleep(0.05)
    assert sum(open_([each]) for each in mine) == 5
    assert [open_([mine[place]]) for place in (0, 1, 2, 6, 7, 8)] == [0, 1, 0, 1, 1, 1]
    assert shares.look() == 0
    for each in mine + taken:
        each.close()


@pytest.mark.parametrize(
    ("addresses", "alike"),
    [
        (("10.0.0.1", "10.0.0.2"), False),
        (("::ffff:10.0.0.1", "10.0.0.1"), True),
        (("2001:db8::1", "2001:db8::ffff:1"), True),
        (("2001:db8::1", "2001:db8:0:1::1"), False),
        (("fe80::1%eth0", "fe80::2"), True),
        (("::1", "127.0.0.1"), False),
    ],
)
def test_addresses_of_one_network_count_as_one(addresses: tuple[str, str], alike: bool) -> None:
    first, second = map(connections.network, addresses)
    assert (first == second) is alike


def test_a_share_leaves_room_for_others_and_for_all_requests() -> None:
    assert connections.share(10_000, 256) == 5_000
    assert connections.share(300, 256) == 256


def test_idle_channels_and_streams_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle channel, one that never speaks HTTP/2, and a stream on which nothing is asked."""
    monkeypatch.setattr(kserve_grpc, "HANDSHAKE_MS", 1000)
    monkeypatch.setattr(kserve_grpc, "IDLE_MS", 1000)
    monkeypatch.setattr(kserve_grpc, "STREAM_IDLE_S", 1.0)
    port = free_ports(1)[0]

    async def go() -> tuple[int, Any, Any]:
        service: Any = ScriptedService()
        server = await kserve_grpc.start(Settings(grpc_port=port), service, None)
        silent = [connected(port, "127.0.0.1") for _ in range(3)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = stubs.GRPCInferenceServiceStub(channel)
            assert (await stub.ServerLive(messages.ServerLiveRequest())).live

            async def nothing() -> Any:
                await asyncio.sleep(30)
                yield messages.ModelInferRequest()

            stream = stub.ModelStreamInfer(nothing())
            code = await asyncio.wait_for(stream.code(), 10)
            await asyncio.sleep(3)
            state = channel.get_state()
            again = (await stub.ServerLive(messages.ServerLiveRequest())).live
        await server.stop(0)
        return open_(silent), code, (state, again)

    left, code, (state, again) = asyncio.run(go())
    assert left == 0
    assert code == grpc.StatusCode.CANCELLED
    assert state == grpc.ChannelConnectivity.IDLE
    assert again
