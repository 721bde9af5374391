"""One process of several that train together: ``python -m pipeline.engines.automodel.rank JOB RUN``.

Torchrun's agent starts as many as asked for and ends the others when one fails.  It puts
each into a session of its own, out of the controller's reach, so each asks the kernel to
end it with its agent: a step that is killed leaves nobody training behind.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from pipeline.stages.ending import DISK_FULL, ending
from pipeline.stages.pool import bind
from pipeline.stages.step import Step, write_json

RUN, FIGURES, AGENT = "run.json", "figures.json", "LIFECYCLE_AGENT"


def launch(step: Step, work: Any, count: int) -> dict[str, Any]:
    """Train as ``count`` processes on this machine and return process 0's figures.

    Raises ``SystemExit`` with the status of the first process that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from pipeline.engines.automodel.session import INTERRUPTED, write_run

    write_run(step.work / RUN, work)
    (step.work / FIGURES).unlink(missing_ok=True)
    os.environ.update({AGENT: str(os.getpid()), "GLOO_SOCKET_IFNAME": "lo"})
    # The agent sets this to 1 unless it is there; the machine's cores are shared out instead.
    os.environ["OMP_NUM_THREADS"] = str(max(1, step.threads // count))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=step.identity[:16],
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        shutdown_timeout=max(1, round(step.grace_s)),  # from SIGTERM on, to write a checkpoint
    )
    module = ["-m", "pipeline.engines.automodel.rank", str(step.work / "job.json"), str(step.work / RUN)]
    try:
        elastic_launch(config, sys.executable)(*module)
    except ChildFailedError as failed:
        codes = [failure.exitcode for failure in failed.failures.values()]
        known = [code for code in (2, DISK_FULL, INTERRUPTED) if code in codes]
        raise SystemExit(known[0] if known else 1) from None
    except SignalException:
        raise SystemExit(INTERRUPTED) from None
    found: dict[str, Any] = json.loads((step.work / FIGURES).read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Train this process's part; the status says how it ended, as a step's does."""
    bind(int(os.environ[AGENT]))
    from pipeline.engines.automodel.session import read_run, train

    step = Step.load(Path(sys.argv[1]))
    work = read_run(Path(sys.argv[2]))
    first = os.environ["RANK"] == "0"

    def part() -> None:
        figures = train(step, work)
        if first:
            write_json(step.work / FIGURES, figures)

    return ending(step, part, tells=first)


if __name__ == "__main__":
    sys.exit(main())
