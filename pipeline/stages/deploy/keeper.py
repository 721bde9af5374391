"""The keeper of a deployed model: starts anew what has died, the gateway or a model's process.

    python -m pipeline.stages.deploy.keeper RUNS/RECIPE/deploy/server.json

One runs beside each deployed recipe, in the serving toolchain, until ``lifecycle stop``.  Triton does not start a dead model
process anew, and says that it is ready all the same: the gateway's probes, which are generations, tell.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

from pipeline import terminal
from pipeline.gateway.settings import load
from pipeline.serving import control, server, service
from pipeline.stages.deploy import gateway, replace, versions

LOOKS_EVERY_S = 1.0
LONGEST_PAUSE_S = 60.0
GATEWAY_S, GATEWAY_LOOKS = 5.0, 3  # for the gateway to say what it knows, and how often it may fail to


def main(path: Path) -> int:
    """Keep until the record is gone, or is another keeper's."""
    pause = LOOKS_EVERY_S
    while True:
        time.sleep(pause)
        found = service.read(path)
        if found is None or found.keeper is None or found.keeper.pid != os.getpid():
            return 0
        with service.changing(path, wait=False) as ours:
            if not ours:
                continue  # a deployment is under way
            found = service.read(path)
            if found is None:
                return 0
            try:
                mended = mend(path, found)
            except Exception as error:  # whatever it is, the next look may find it gone
                _say(
                    f"could not be mended, the next try follows in {min(2 * pause, LONGEST_PAUSE_S):g} s: {error}"
                )
                pause = min(2 * pause, LONGEST_PAUSE_S)
            else:
                pause = LOOKS_EVERY_S
                if mended:
                    _say(mended)


def mend(path: Path, found: service.Service) -> str:
    """Start anew what is not there; returns what was done, empty where all is well."""
    why = _fault_of_gateway(found.gateway)
    if why:
        service.kill_gateway(found.gateway)
        wanted = load(Path(found.gateway.settings))
        made = gateway.start(service.folder_of(path), dataclasses.replace(wanted, control=None))
        found = dataclasses.replace(found, gateway=made)
        service.write(path, found)
        _say(f"the gateway {why} and has been started anew (process {made.process.pid})")
    why = _fault(found)
    if not why:
        return ""
    # Where some of several models still answer, they do so until the new server is asked.
    serves = server.is_running(found.version) and control.state(found.gateway.control)["current"]["answers"]
    _say(f"the model does not answer ({why}); starting it anew")
    if not serves:
        server.stop(found.version)
    record, seconds = versions.start(
        versions.Export.read(Path(found.export)),
        service.folder_of(path) / "versions",
        found.version if serves else None,
        found.threads,
        found.start_timeout_s,
    )
    again = dataclasses.replace(found, version=record, restarts=found.restarts + 1)
    service.write(path, again)
    try:
        replace.switch(found.gateway, record, found.models)
    except control.ControlError:
        if serves:
            service.write(path, found)
            server.stop(record)
        raise
    if serves:
        drain_s = load(Path(found.gateway.settings)).limits.drain_s
        replace.drain(found.gateway, found.version, drain_s, _say)
    return f"the model answers again, after {seconds:.1f} s for its first answer (process {record.pid})"


def _fault_of_gateway(gateway: service.Gateway) -> str:
    """Why the gateway has to be started anew: it is gone, or does not answer at several looks (it has stopped, or hangs)."""
    if not service.gateway_runs(gateway):
        return "was gone"
    for look in range(GATEWAY_LOOKS):
        try:
            control.state(gateway.control, timeout=GATEWAY_S)
        except control.ControlError:
            if look + 1 < GATEWAY_LOOKS:
                time.sleep(LOOKS_EVERY_S)
        else:
            return ""
    return "did not answer"


def _fault(found: service.Service) -> str:
    """Why the model has to be started anew; a server that lives and is only not asked is asked from now on.

    What a gateway says of a model counts when it says so twice.
    """
    if not server.is_running(found.version):
        return "its server is gone"
    for look in range(2):
        state = control.state(found.gateway.control)
        if service.asks(state) != found.version.address:
            replace.switch(found.gateway, found.version, found.models)
            return ""
        fault = str(state["current"]["fault"])
        if not fault:
            return ""
        if not look:
            time.sleep(LOOKS_EVERY_S)
    return fault


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {terminal.visible(text)}", flush=True)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
