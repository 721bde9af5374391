"""Addresses of both families: written, understood and listened at (the case ipv6-host)."""

from __future__ import annotations

import socket

import pytest

from pipeline import schema
from pipeline.gateway.addresses import authority, bound, host_of, is_everywhere
from pipeline.gateway.settings import is_loopback
from pipeline.record.trace import ADDRESS
from pipeline.serving.client import Endpoint
from pipeline.serving.server import reachable
from pipeline.stages.deploy import ports
from pipeline.stages.step import InputError
from tests.miniature import free_ports


@pytest.mark.parametrize(
    ("host", "reached", "written"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1:80"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1:80"),
        ("localhost", "localhost", "localhost:80"),
        ("::1", "::1", "[::1]:80"),
        ("::", "::1", "[::1]:80"),
        ("0:0:0:0:0:0:0:0", "::1", "[::1]:80"),
        ("fe80::1%eth0", "fe80::1%eth0", "[fe80::1%eth0]:80"),
        ("models.example.com", "models.example.com", "models.example.com:80"),
    ],
)
def test_an_address_is_written_as_urls_have_it(host: str, reached: str, written: str) -> None:
    assert reachable(host) == reached
    address = authority(reachable(host), 80)
    assert address == written
    assert host_of(address) == reached
    assert is_everywhere(host) == (host != reached)
    assert (
        is_loopback(reached)
        == is_loopback(host_of(address))
        == (reached in ("127.0.0.1", "::1", "localhost"))
    )
    for words in (address, f"http://{address}", Endpoint(address, "m").url, f"{address}/"):
        assert ADDRESS.fullmatch(words), words


@pytest.mark.parametrize(
    "words", ["llama-tiny", "runs/a:b", "::1:80", "[::1]", "a[b]:80", "[not an address]:80"]
)
def test_what_is_no_address_is_not_taken_for_one(words: str) -> None:
    assert not ADDRESS.fullmatch(words)


@pytest.mark.parametrize(
    ("host", "answers"),
    [
        ("127.0.0.1", ["127.0.0.1"]),
        ("::1", ["::1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("::", ["::1", "127.0.0.1"]),
    ],
)
def test_who_listens_is_reached_and_seen(host: str, answers: list[str]) -> None:
    http, grpc, metrics = free_ports(3)
    settings = schema.Deploy(host=host, http_port=http, grpc_port=grpc, metrics_port=metrics)
    ports.check_free(settings)
    with bound(host, http):
        for each in answers:
            socket.create_connection((each, http), timeout=5).close()
        with pytest.raises(InputError, match=rf"port {http} is taken by process \d+ .*deploy.http_port"):
            ports.check_free(settings)
    ports.check_free(settings)


def test_metrics_are_looked_for_where_they_are_served() -> None:
    http, grpc, metrics = free_ports(3)
    with (
        bound("127.0.0.1", metrics),
        pytest.raises(InputError, match=f"port {metrics} is taken by .*deploy.metrics_port"),
    ):
        ports.check_free(schema.Deploy(host="::1", http_port=http, grpc_port=grpc, metrics_port=metrics))


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("2001:db8::1", "is no address of this machine$"),
        ("192.0.2.1", "is no address of this machine$"),
        ("no-such-host.invalid", "is no address of this machine$"),
        ("[::1]", "is no address of this machine; write it without brackets: ::1$"),
        ("x" * 300, "is no address of this machine$"),
    ],
)
def test_a_host_that_is_not_ours_is_refused(host: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ports.check_free(schema.Deploy(host=host))
