"""Start one step: ``python -m pipeline.stages WORK/job.json`` inside its toolchain.

Exit status 0: ``output/`` and ``result.json`` are complete.  2: the user's mistake, told
in an ``error`` event.  Anything else: the step broke; its log has the traceback.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

from pipeline.stages.ending import ending
from pipeline.stages.step import Step

WATCH_S = 0.5


def main() -> int:
    parent = os.getppid()
    # Ending by an exception lets a stage clean up; AutoModel puts its own handler in place.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    step = Step.load(Path(sys.argv[1]))
    threading.Thread(target=_end_with, args=(parent, step.grace_s), daemon=True).start()
    return ending(step, lambda: importlib.import_module(step.module).run(step))


def _end_with(parent: int, grace_s: float) -> None:
    """End this process and its helpers when the controller is gone and the grace period over.

    The kernel sends SIGTERM when the controller dies; this is for work that does not heed it.
    """
    while os.getppid() == parent:
        time.sleep(WATCH_S)
    time.sleep(grace_s)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
