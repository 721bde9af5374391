"""Are the ports free, and who holds the one that is not?"""

from __future__ import annotations

import errno
import socket
import time

from pipeline import schema
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
        fault = _bind_fault(settings.host, port)
        while fault == errno.EADDRINUSE and time.monotonic() < deadline:
            time.sleep(0.1)
            fault = _bind_fault(settings.host, port)
        if fault is None:
            continue
        if fault == errno.EADDRNOTAVAIL:
            raise InputError(f"deploy.host: {settings.host!r} is no address of this machine")
        if fault == errno.EACCES:
            raise InputError(f"port {port} (deploy.{name}) needs privileges; choose one of 1024 or more")
        holder = processes.listener(port)
        who = f"process {holder.pid} ({' '.join(holder.command)[:80]})" if holder else "another process"
        raise InputError(
            f'port {port} is taken by {who}; free it, or choose another: SET="deploy.{name}=..."'
        )


def _bind_fault(host: str, port: int) -> int | None:
    """The error number of listening there, None where one could."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        # Connections of a server stopped a moment ago linger; only listeners matter.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except socket.gaierror:
            return errno.EADDRNOTAVAIL
        except OSError as error:
            return error.errno
    return None
