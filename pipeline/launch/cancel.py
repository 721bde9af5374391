"""Take the jobs of a submission back from its cluster."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from pipeline.errors import LifecycleError, UserError
from pipeline.launch.handover import hand_over
from pipeline.launch.orders import read_order, submissions
from pipeline.launch.status import jobs_of


def cancel(recipe_folder: Path) -> list[str]:
    """Cancel what waits or runs of the recipe's last submission; returns what to say.

    The steps are told to stop as by any interruption, so that the next submission goes on
    from their last sealed checkpoints.
    """
    found = submissions(recipe_folder)
    if not found:
        raise UserError(f"{recipe_folder.name} was never submitted to a cluster from these runs")
    order = read_order(found[-1])
    live = [job for job in jobs_of(found[-1]) if job.live]
    if not live:
        return ["no job waits or runs"]
    if order.site["kind"] == "kubernetes":
        hand_over("cancel", found[-1])
    else:
        if shutil.which("scancel") is None:
            raise UserError("scancel is not on this machine: cancel from one that belongs to the cluster")
        command = ["scancel", *(job.id for job in live)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LifecycleError(f"Slurm did not cancel: {done.stderr.strip()}")
    return [f"cancelled {job.stage} (job {job.id})" for job in live]
