"""Put a version in the place of another without losing a request.

The new Triton is started beside the old one and has to answer; the gateway asks it for a token
itself, asks it alone from then on, and lets the old one finish what it has; then the old one is stopped.
Whatever fails before the switch leaves the old version as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pipeline.serving import control, server, service
from pipeline.serving.server import ServerRecord

LOOKED_AT_S = 0.1
AFTER_GIVING_UP_S = 5.0


def switch(gateway: service.Gateway, version: ServerRecord, models: dict[str, dict[str, str]]) -> None:
    """Have clients served by this version from now on.  Raises :class:`control.ControlError` where it does not answer."""
    control.switch(gateway.control, service.plain(version, models))


def drain(gateway: service.Gateway, old: ServerRecord, drain_s: float, say: Callable[[str], None]) -> None:
    """Wait until nothing is under way on a version that was switched away from, then stop it.

    What is not over after ``drain_s`` gets an error.
    """
    began, gave_up = time.monotonic(), False
    try:
        while server.is_running(old) and service.gateway_runs(gateway):
            waited = time.monotonic() - began
            if waited > drain_s + AFTER_GIVING_UP_S:
                break
            try:
                leaving = [
                    each
                    for each in control.state(gateway.control)["leaving"]
                    if each["address"] == old.address
                ]
                if not leaving:
                    break
                if waited > drain_s and not gave_up:
                    count = leaving[0]["under_way"]
                    say(
                        f"{count} answers of the version before were not over after {drain_s:g} s, and were ended"
                    )
                    control.give_up(gateway.control, old.address, "the model was replaced while it answered")
                    gave_up = True
            except control.ControlError:
                pass  # busy, or gone: the next look tells
            time.sleep(LOOKED_AT_S)
    finally:
        say(server.stop(old, "the Triton of the version before"))
