"""Addresses of both families: how they are written, and listening at one.  Standard library alone."""

from __future__ import annotations

import ipaddress
import socket


def bare(host: str) -> str:
    """A host without the brackets that an address of IPv6 has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def is_everywhere(host: str) -> bool:
    """Whether who listens there listens on every address of this machine."""
    try:
        return ipaddress.ip_address(bare(host)).is_unspecified
    except ValueError:
        return not host


def authority(host: str, port: int) -> str:
    """Host and port as URLs have them: an address of IPv6 in brackets (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def host_of(address: str) -> str:
    """The host of a host and port, without brackets."""
    return bare(address.rpartition(":")[0])


def bound(host: str, port: int, backlog: int = 128) -> socket.socket:
    """A socket that listens at an address of either family; ``::`` is every address of both.  Raises ``OSError``."""
    family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    both = family == socket.AF_INET6 and is_everywhere(host) and socket.has_dualstack_ipv6()
    return socket.create_server((host, port), family=family, backlog=backlog, dualstack_ipv6=both)
