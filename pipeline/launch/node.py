"""A further machine of a step: ``python -m pipeline.launch.node``, waiting for calls (:mod:`.muster`).

Runs on the controller's interpreter; what is called for runs in the step's toolchain.  It does not end by itself
before it is dismissed, whatever became of the training here: how the step ended is the controller's to say.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

from pipeline.launch import muster
from pipeline.runner.execute import die_with, step_environment
from pipeline.stages.ending import INTERRUPTED
from pipeline.threads import thread_count
from pipeline.toolchains import Toolchain

POLL_S = 0.5


def main() -> int:
    place = muster.folder()
    if place is None:
        print(f"error: {muster.FOLDER} and {muster.NODES} say nothing of several machines", file=sys.stderr)
        return 2
    at_work: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in at_work:
            process.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    answered = None
    while not (place / muster.DISMISSED).exists():
        called = muster.read(place)
        if called is not None and called != answered:
            answered = called
            process = join(called)
            at_work[:] = [process]
            status = process.wait()
            at_work.clear()
            # Told to stop, all machines are: the first needs no second word, which would cut its checkpoint short.
            if status not in (0, INTERRUPTED):
                muster.tell_failed(place, status if status > 0 else 128 - status)
        time.sleep(POLL_S)
    # The cluster ends what is left when the first machine is done.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def join(called: muster.Call) -> subprocess.Popen[bytes]:
    """Start this machine's part of a training; its processes end with this one."""
    toolchain = Toolchain(called.toolchain)
    environment = step_environment(toolchain, thread_count(0), Path(called.job).parent)
    module = "pipeline.engines.automodel.rank"
    words = [str(toolchain.python), "-m", module, "join", called.job, called.run]
    words += [called.address, str(called.processes), str(called.nodes), os.environ[muster.NODE]]
    return subprocess.Popen(
        words, stdin=subprocess.DEVNULL, env=environment, preexec_fn=partial(die_with, os.getpid())
    )


if __name__ == "__main__":
    sys.exit(main())
