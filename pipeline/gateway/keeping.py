"""Who keeps the keeper: the gateway of a deployed recipe, which the keeper keeps in turn.

The keeper (:mod:`pipeline.stages.deploy.keeper`) starts anew what has died or stopped; what becomes of it is looked at here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from pipeline.serving import keeping, service

LOG = logging.getLogger("lifecycle.gateway")
LOOKS_EVERY_S = 2.0
STOPPED = "Tt"  # states of /proc: by a signal, by a debugger


class Keeping:
    """Looks after the keeper of the record at ``path``; ``python`` is its toolchain's."""

    def __init__(self, python: str, path: str) -> None:
        self.python, self.path = Path(python), Path(path)
        self._suspect = ""

    async def watch(self) -> None:
        """For ever."""
        while True:
            await asyncio.sleep(LOOKS_EVERY_S)
            try:
                said = await asyncio.to_thread(self.look)
            except (OSError, ValueError) as error:
                said = f"the keeper cannot be looked after: {error}"
            if said:
                LOG.warning("%s", said)

    def look(self) -> str:
        """Start a keeper in the place of one that was gone or stopped at two looks; returns what was done."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:  # keepers of ours that have ended
                pass
        found = service.read(self.path)
        if found is None or found.gateway.process.pid != os.getpid():
            return ""  # being stopped, or replaced
        fault = _fault(found)
        if not fault or fault != self._suspect:
            self._suspect = fault
            return ""
        if found.keeper is not None and found.keeper.process() is not None:
            os.kill(found.keeper.pid, signal.SIGKILL)  # it may hold the lock
        with service.changing(self.path, wait=False) as ours:
            found = service.read(self.path)
            if not ours or found is None or found.gateway.process.pid != os.getpid():
                return ""  # a deployment is under way, which ends with a keeper
            pid = keeping.start(self.python, self.path, found)
        self._suspect = ""
        return f"the keeper {fault}, and another has been started (process {pid})"


def _fault(found: service.Service) -> str:
    """What is wrong with the keeper; empty where nothing is."""
    process = found.keeper.process() if found.keeper is not None else None
    if process is None or not service.keeper_runs(found):
        return "was gone"
    return "had stopped" if process.state in STOPPED else ""
