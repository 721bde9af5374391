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
import sys
from collections import defaultdict
from pathlib import Path

from pipeline.gateway.connections import network

LOOKED_AT_S = 0.25
ESTABLISHED = "01"
PROC = Path("/proc/self")


class Shares:
    """Keeps each address at ``most`` connections to a port; the newest are those that end."""

    def __init__(self, port: int, most: int) -> None:
        self.port, self.most = port, most
        self._seen: dict[int, str] = {}  # inode to address, oldest first

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOKED_AT_S)
            self.look()

    def look(self) -> int:
        """End what is too much; returns how many connections that were."""
        now = connections(self.port)
        self._seen = {inode: address for inode, address in self._seen.items() if inode in now}
        self._seen.update({inode: address for inode, address in now.items() if inode not in self._seen})
        of: defaultdict[str, list[int]] = defaultdict(list)
        for inode, address in self._seen.items():
            of[address].append(inode)
        much = {inode for inodes in of.values() for inode in inodes[self.most :]}
        return _end(much) if much else 0


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


def _end(inodes: set[int]) -> int:
    """Shut down our sockets of these inodes."""
    ended = 0
    for entry in (PROC / "fd").iterdir():
        try:
            if entry.stat().st_ino not in inodes:
                continue
            # A copy of the descriptor, which nobody can give to another file between looking and ending.
            with socket.socket(fileno=os.dup(int(entry.name))) as ours:
                if os.fstat(ours.fileno()).st_ino in inodes:
                    ours.shutdown(socket.SHUT_RDWR)
                    ended += 1
        except OSError:
            continue  # it has just ended by itself, or is no socket
    return ended
