"""A share of gRPC's connections for each address, so that nobody's idle ones lock the others out.

gRPC bounds all connections together and tells nobody of them.  They are this process's own sockets: Linux says in ``/proc``
whose they are, and one that is shut down here has ended for gRPC as if its client had gone.
(HTTP's are bounded where they are made, in :mod:`.connections`.)
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pipeline.gateway.connections import network

LOOKED_AT_S = 0.25
ESTABLISHED = "01"
PROC = Path("/proc/self")
TCP_INFO_BYTES, LAST_SENT, LAST_RECEIVED = (
    60,
    44,
    52,
)  # of struct tcp_info (tcp(7)); milliseconds, 32 bits each


class Shares:
    """Keeps each address at ``most`` connections to a port, and all at ``total``; those that were silent longest end."""

    def __init__(self, port: int, most: int, total: int) -> None:
        self.port, self.most, self.total = port, most, total

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOKED_AT_S)
            self.look()

    def look(self) -> int:
        """End what is too much; returns how many connections that were."""
        now = connections(self.port)
        counts = Counter(now.values())
        if len(now) <= self.total and max(counts.values(), default=0) <= self.most:
            return 0
        silent = sorted(((ms, inode) for inode, ms in _silent(set(now)).items()), reverse=True)
        left, ended = len(now), set()
        for _, inode in silent:
            address = now[inode]
            fullest = left > self.total and counts[address] == max(counts.values())
            if counts[address] > self.most or fullest:
                counts[address] -= 1
                left -= 1
                ended.add(inode)
        return _end(ended)


def connections(port: int) -> dict[int, str]:
    """The inode of each established connection to a port of ours, and the address at its other end."""
    found = {}
    for table in ("net/tcp", "net/tcp6"):
        try:
            lines = (PROC / table).read_text(encoding="ascii").splitlines()[1:]
        except FileNotFoundError:
            continue  # no IPv6 here
        for fields in map(str.split, lines):
            if fields[3] == ESTABLISHED and int(fields[1].rpartition(":")[2], 16) == port:
                found[int(fields[9])] = _address(fields[2].rpartition(":")[0])
    return found


def _address(written: str) -> str:
    """Of the kernel's hexadecimal words, each in the machine's byte order."""
    words = [
        int(written[place : place + 8], 16).to_bytes(4, sys.byteorder) for place in range(0, len(written), 8)
    ]
    return network(str(ipaddress.ip_address(b"".join(words))))


def _sockets(inodes: set[int]) -> Iterator[tuple[int, socket.socket]]:
    """Our sockets of these inodes, by another descriptor each: nobody can give it to another file meanwhile."""
    for entry in (PROC / "fd").iterdir():
        try:
            if entry.stat().st_ino not in inodes:
                continue
            with socket.socket(fileno=os.dup(int(entry.name))) as ours:
                inode = os.fstat(ours.fileno()).st_ino
                if inode in inodes:
                    yield inode, ours
        except OSError:
            continue  # it has just ended by itself, or is no socket


def _silent(inodes: set[int]) -> dict[int, int]:
    """For how many milliseconds nothing was sent or received over each."""
    found = {}
    for inode, ours in _sockets(inodes):
        told = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        found[inode] = min(struct.unpack_from("=I", told, place)[0] for place in (LAST_SENT, LAST_RECEIVED))
    return found


def _end(inodes: set[int]) -> int:
    """Shut down our sockets of these inodes."""
    ended = 0
    for _, ours in _sockets(inodes):
        ours.shutdown(socket.SHUT_RDWR)
        ended += 1
    return ended
