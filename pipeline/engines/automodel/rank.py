"""One process of several that train together: ``python -m pipeline.engines.automodel.rank JOB RUN``.

Torchrun's agent starts as many as asked for and ends the others when one fails.  It puts
each into a session of its own, out of the controller's reach, so each asks the kernel to
end it with its agent: a step that is killed leaves nobody training behind.  Over several machines
each has an agent, and they meet at the first one's (``join``).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pipeline.launch import muster
from pipeline.stages.ending import DISK_FULL, INTERRUPTED, OUT_OF_MEMORY, WORKER_KILLED, ending
from pipeline.stages.pool import bind
from pipeline.stages.step import Step, write_json

RUN, FIGURES, AGENT = "run.json", "figures.json", "LIFECYCLE_AGENT"
TOLD = (2, DISK_FULL, OUT_OF_MEMORY, WORKER_KILLED, INTERRUPTED)  # what says most first
WATCH_S = 1.0
MEET_S = 900  # until the last machine has loaded its libraries from a shared disk


def launch(step: Step, work: Any, count: int) -> dict[str, Any]:
    """Train as ``count`` processes on this machine, and as many on each other one; returns process 0's figures.

    Raises ``SystemExit`` with what the status of those that failed says.
    """
    from pipeline.engines.automodel.session import write_run

    job, run = step.work / "job.json", step.work / RUN
    write_run(run, work)
    (step.work / FIGURES).unlink(missing_ok=True)
    nodes = muster.nodes()
    address = ""
    if nodes > 1:
        address = muster.call("core", job, run, count).address
        threading.Thread(target=_stop_when_one_fails, daemon=True).start()
    status = _agent(step, run, count, nodes, address, 0)
    if status or step.extra.get("calibrate"):
        raise SystemExit(status)
    found: dict[str, Any] = json.loads((step.work / FIGURES).read_text(encoding="utf-8"))
    return found


def _stop_when_one_fails() -> None:
    """End this machine's part when another's failed: its processes would wait for theirs, NCCL's for an hour."""
    place = muster.folder()
    assert place is not None
    while muster.failed(place) is None:
        time.sleep(WATCH_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _agent(step: Step, run: Path, count: int, nodes: int, address: str, node: int) -> int:
    """Start this machine's processes and wait for them; the status is that of the first that failed, or 0.

    ``address`` is where the machines meet, ``node`` which of them this is; both are moot for a single one.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ[AGENT] = str(os.getpid())
    # The agent sets this to 1 unless it is there; the machine's cores are shared out instead.
    os.environ["OMP_NUM_THREADS"] = str(max(1, step.threads // count))
    if nodes == 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        meeting: dict[str, Any] = {
            "rdzv_backend": "c10d",
            "rdzv_endpoint": "127.0.0.1:0",
            "local_addr": "127.0.0.1",
        }
    else:
        # Machine 0 has process 0, which reports and publishes.
        configs = {"rank": node, "timeout": MEET_S}
        meeting = {"rdzv_backend": "static", "rdzv_endpoint": address, "rdzv_configs": configs}
    config = LaunchConfig(
        min_nodes=nodes,
        max_nodes=nodes,
        nproc_per_node=count,
        run_id=step.identity[:16],
        max_restarts=0,
        shutdown_timeout=max(1, round(step.grace_s)),  # from SIGTERM on, to write a checkpoint
        **meeting,
    )
    module = ["-m", "pipeline.engines.automodel.rank", str(step.work / "job.json"), str(run)]
    try:
        elastic_launch(config, sys.executable)(*module)
    except ChildFailedError as failed:
        # The agent ends the others when one has failed, so how they ended says nothing.
        _, first = failed.get_first_failure()
        known = known_status([failure.exitcode for failure in failed.failures.values()])
        return WORKER_KILLED if known == 1 and first.exitcode == -signal.SIGKILL else known
    except SignalException:
        place = muster.folder()
        lost = muster.failed(place) if place and node == 0 else None
        return INTERRUPTED if lost is None else known_status([lost])
    return 0


def known_status(codes: list[int | None]) -> int:
    """The status of a step some of whose processes ended with these."""
    return next((code for code in TOLD if code in codes), 1)


def join(job: str, run: str, address: str, count: str, nodes: str, node: str) -> int:
    """This machine's part of a training that another one called for (:mod:`pipeline.launch.node`)."""
    return _agent(Step.load(Path(job)), Path(run), int(count), int(nodes), address, int(node))


def main() -> int:
    """Train this process's part; the status says how it ended, as a step's does."""
    if sys.argv[1] == "join":
        return join(*sys.argv[2:])
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
