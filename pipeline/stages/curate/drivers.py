"""Two drivers over the same stage objects: a pool of processes here, or a Ray cluster.

Both take one Curator stage and its tasks (:class:`pipeline.stages.curate.shards.FolderWork`:
each task makes one folder) and yield the finished folders as they come.  What is finished
stays finished: a folder that exists is not made again.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any, Protocol

from nemo_curator.tasks import FileGroupTask

from pipeline.stages.curate.shards import FolderWork
from pipeline.stages.pool import worker_pool
from pipeline.stages.step import InputError

POLL_S = 0.5
CONNECT_S = 10.0


class Driver(Protocol):
    """Runs one stage over many tasks."""

    def run(self, work: FolderWork, tasks: list[FileGroupTask]) -> Iterator[Path]:
        """Yield the folder of each finished task, in any order."""
        ...


def driver(workers: int, ray: str | None) -> Driver:
    """The driver of a site: Ray where it names a cluster (``local`` starts one), else a pool."""
    return PoolDriver(workers) if ray is None else RayDriver(workers, ray)


class PoolDriver:
    """A pool of processes on this machine; each sets the stage up once."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: FolderWork, tasks: list[FileGroupTask]) -> Iterator[Path]:
        """See :class:`Driver`.  An error of a task is raised as it is."""
        if not tasks:
            return
        with worker_pool(min(self.workers, len(tasks)), _set_up, (work,)) as pool:
            running = [pool.submit(_process, task) for task in tasks]
            try:
                for finished in as_completed(running):
                    yield Path(finished.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise


_work: list[FolderWork] = []  # of this worker process
_fault: list[
    BaseException
] = []  # of its set-up: raised by its first task, since here it would break the pool


def _set_up(work: FolderWork) -> None:
    try:
        work.setup()
    except Exception as error:
        _fault[:] = [error]
    _work[:] = [work]


def _process(task: FileGroupTask) -> str:
    if _fault:
        raise _fault[0]
    return str(_work[0].process(task).data[0])


class RayDriver:
    """Curator's ``RayDataExecutor`` on a cluster, whose machines share the work folder.

    The executor reports only at the end; a watcher beside it looks for finished shards, so
    that they are sealed as they come and an interrupted run keeps them.  Ray Data 2.60 now
    and then loses sight of a task it has just been given (a ``KeyError`` for an object);
    what is unfinished is then given to it again, ``ATTEMPTS`` times in all.
    """

    ATTEMPTS = 3

    def __init__(self, workers: int, address: str) -> None:
        self.workers, self.address = workers, address

    def run(self, work: FolderWork, tasks: list[FileGroupTask]) -> Iterator[Path]:
        """See :class:`Driver`."""
        if not tasks:
            return
        left = tasks
        for attempt in range(1, self.ATTEMPTS + 1):
            outcome: list[BaseException] = []
            yield from self._attempt(work, left, outcome)
            left = [task for task in left if not Path(task.data[-1]).exists()]
            if not left:
                return
            lost = not outcome or (isinstance(outcome[0], KeyError) and "ObjectRef" in str(outcome[0]))
            if not lost or attempt == self.ATTEMPTS:
                raise (
                    outcome[0] if outcome else RuntimeError(f"Ray finished without {len(left)} of its tasks")
                )

    def _attempt(
        self, work: FolderWork, tasks: list[FileGroupTask], outcome: list[BaseException]
    ) -> Iterator[Path]:
        waiting = {Path(task.data[-1]) for task in tasks}
        thread = threading.Thread(target=self._execute, args=(work, tasks, outcome), daemon=True)
        thread.start()
        alive = True
        while alive:
            thread.join(POLL_S)
            alive = thread.is_alive()  # before looking: what it finished last is seen then
            done = sorted(target for target in waiting if target.exists())
            waiting.difference_update(done)
            yield from done

    def _execute(self, work: FolderWork, tasks: list[FileGroupTask], outcome: list[BaseException]) -> None:
        import ray
        from nemo_curator.backends.ray_data import RayDataExecutor
        from nemo_curator.pipeline import Pipeline

        try:
            self._connect(ray)
            Pipeline(name="curation", stages=[work]).run(RayDataExecutor(), initial_tasks=tasks)
        except BaseException as error:
            outcome.append(error)

    def _connect(self, ray: Any) -> None:
        """Join the cluster at the address, or start one that ends with this process."""
        if self.address == "local":
            os.environ.pop("RAY_ADDRESS", None)
            ray.init(
                address="local",  # never another's that happens to run here, which Ray would join
                num_cpus=self.workers,
                include_dashboard=False,
                log_to_driver=False,
                ignore_reinit_error=True,
            )
            return
        os.environ["RAY_ADDRESS"] = self.address  # Curator's executor connects by it
        try:
            host, _, port = self.address.rpartition(":")
            socket.create_connection(
                (host, int(port)), timeout=CONNECT_S
            ).close()  # Ray itself waits a minute
            ray.init(address=self.address, ignore_reinit_error=True, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:  # of the socket, the address, of Ray
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"no Ray cluster answers at {self.address} (site.ray): {first}. Give HOST:PORT of its head node, "
                "as `ray status` shows it, or 'local' to start one here"
            ) from None
