"""Are the ports free, and who holds the one that is not?"""

from __future__ import annotations

import errno
import socket
import time

from pipeline import schema
from pipeline.gateway.addresses import bare, bound
from pipeline.gateway.settings import Settings
from pipeline.serving import processes
from pipeline.stages.step import InputError

NAMES = ("http_port", "grpc_port", "metrics_port")
CLOSING_S = 10.0  # the kernel may close a killed server's sockets after the process is gone


def check_distinct(settings: schema.Deploy) -> None:
    """Raise :class:`InputError` when two endpoints share a port."""
    for place, name in enumerate(NAMES):
        for other in NAMES[place + 1 :]:
            if getattr(settings, name) == getattr(settings, other):
                raise InputError(
                    f"deploy.{name} and deploy.{other} are both {getattr(settings, name)}; "
                    f"each endpoint needs its own port"
                )


def check_free(settings: schema.Deploy, ours: tuple[int, ...] = (), *, just_stopped: bool = False) -> None:
    """Raise :class:`InputError` for a port that is taken, naming its holder where it shows.

    ``ours`` are ports of our own server, which will be stopped first.  Where a server has
    ``just_stopped``, a port may take up to ``CLOSING_S`` to come free.
    """
    deadline = time.monotonic() + (CLOSING_S if just_stopped else 0.0)
    for name in NAMES:
        port = getattr(settings, name)
        if port in ours:
            continue
        host = Settings.metrics_host if name == "metrics_port" else settings.host
        fault = _bind_fault(host, port)
        while fault == errno.EADDRINUSE and time.monotonic() < deadline:
            time.sleep(0.1)
            fault = _bind_fault(host, port)
        if fault is None:
            continue
        if fault == errno.EADDRNOTAVAIL:
            raise InputError(
                f"deploy.host: {settings.host!r} is no address of this machine{_hint(settings.host)}"
            )
        if fault == errno.EACCES:
            raise InputError(f"port {port} (deploy.{name}) needs privileges; choose one of 1024 or more")
        holder = processes.listener(port)
        who = f"process {holder.pid} ({' '.join(holder.command)[:80]})" if holder else "another process"
        raise InputError(
            f'port {port} is taken by {who}; free it, or choose another: SET="deploy.{name}=..."'
        )


def _bind_fault(host: str, port: int) -> int | None:
    """The error number of listening there, None where one could."""
    try:
        # As the gateway will do it, so that the answer is its own; connections of a server stopped a moment ago, which
        # linger, are in nobody's way.
        bound(host, port).close()
    except (socket.gaierror, UnicodeError):
        return errno.EADDRNOTAVAIL
    except OSError as error:
        # A machine without IPv6 has none of its addresses.
        return errno.EADDRNOTAVAIL if error.errno == errno.EAFNOSUPPORT else error.errno
    return None


def _hint(host: str) -> str:
    return f"; write it without brackets: {bare(host)}" if bare(host) != host else ""
