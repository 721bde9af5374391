"""The ``launch`` toolchain's side: ``python -m pipeline.launch dry|send|look|cancel FOLDER``.

Exit status 0, or 2 with words for a person on the last line of what it says.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline.errors import LifecycleError
from pipeline.launch import kubernetes, slurm
from pipeline.launch.orders import read_order, write_jobs


def main(words: list[str]) -> int:
    """Do one thing with the submission in a folder."""
    action, folder = words[0], Path(words[1])
    os.environ["NEMORUN_HOME"] = str(slurm.home(folder))
    order = read_order(folder)
    cluster = slurm if order.site["kind"] == "slurm" else kubernetes
    try:
        if action in ("dry", "send"):
            write_jobs(folder, cluster.send(order, folder, dry=action == "dry"))
        elif action == "look":
            kubernetes.look(order, folder)
        else:
            kubernetes.cancel(order, folder)
    except LifecycleError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
