"""The gateway's control socket, asked: which version is current, and another in its place.

The other side is :mod:`pipeline.gateway.control`.  Standard library alone: the controller asks, too.
"""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

from pipeline import strict_json


class ControlError(Exception):
    """The gateway refused, or could not be asked; the text is meant for people."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def state(control: str, timeout: float = 5.0) -> dict[str, Any]:
    """What the gateway knows of its versions.  Raises :class:`ControlError`."""
    return _ask(control, "GET", "/state", None, timeout)


def switch(control: str, version: dict[str, Any], timeout: float = 60.0) -> None:
    """Have this version asked from now on.  Raises :class:`ControlError`."""
    _ask(control, "POST", "/switch", version, timeout)


def give_up(control: str, address: str, why: str) -> None:
    """End what is still under way on a version that is leaving.  Raises :class:`ControlError`."""
    _ask(control, "POST", "/give-up", {"address": address, "why": why}, 5.0)


def _ask(control: str, method: str, path: str, body: Any, timeout: float) -> dict[str, Any]:
    connection = _Connection(control, timeout)
    try:
        connection.request(method, path, None if body is None else strict_json.dumps(body))
        answer = connection.getresponse()
        found: dict[str, Any] = json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ControlError(f"the gateway does not answer on its control socket: {error}") from None
    finally:
        connection.close()
    if answer.status != 200:
        raise ControlError(str(found.get("error", f"status {answer.status}")))
    return found
