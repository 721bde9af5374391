"""Two drivers over the same stage objects: a pool of processes here, or a Ray cluster.

Both take one Curator stage and its tasks (:class:`pipeline.stages.curate.shards.FolderWork`:
each task makes one folder) and yield the finished folders as they come.  What is finished
stays finished: a folder that exists is not made again.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from concurrent.futures import as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from nemo_curator.tasks import FileGroupTask

from pipeline.stages.curate.shards import FolderWork
from pipeline.stages.pool import bind, worker_pool
from pipeline.stages.step import InputError

POLL_S = 0.5
CONNECT_S = 10.0
SPAWN = multiprocessing.get_context("spawn")  # a fork would inherit Ray's threads' locks


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

    Each pass is driven by a process of its own: the executor leaves the cluster at its end, and
    Ray Data 2.60, joining again from the same process, now and then takes up an object of
    before.  What is unfinished after such a slip is given to it once more.  The executor
    reports only at the end, so this process looks for finished shards meanwhile; they are
    sealed as they come, and an interrupted run keeps them.
    """

    ATTEMPTS = 2

    def __init__(self, workers: int, address: str) -> None:
        self.workers, self.address = workers, address

    def run(self, work: FolderWork, tasks: list[FileGroupTask]) -> Iterator[Path]:
        """See :class:`Driver`."""
        left = tasks
        for attempt in range(1, self.ATTEMPTS + 1):
            if not left:
                return
            outcome: list[BaseException] = []
            yield from self._attempt(work, left, self._cluster(), outcome)
            left = [task for task in left if not Path(task.data[-1]).exists()]
            slipped = not outcome or "object" in str(outcome[0]).lower()
            if left and (attempt == self.ATTEMPTS or not slipped):
                raise (
                    outcome[0] if outcome else RuntimeError(f"Ray finished without {len(left)} of its tasks")
                )

    def _attempt(
        self, work: FolderWork, tasks: list[FileGroupTask], address: str, outcome: list[BaseException]
    ) -> Iterator[Path]:
        waiting = {Path(task.data[-1]) for task in tasks}
        from ray import cloudpickle  # stages may hold functions, as Curator's word splitters are

        receiver, sender = SPAWN.Pipe(duplex=False)
        order = cloudpickle.dumps((work, tasks))
        process = SPAWN.Process(target=_drive, args=(os.getpid(), sender, address, order))
        process.start()
        sender.close()
        try:
            alive = True
            while alive:
                process.join(POLL_S)
                alive = process.is_alive()  # before looking: what it finished last is seen then
                done = sorted(target for target in waiting if target.exists())
                waiting.difference_update(done)
                yield from done
            outcome += _told(receiver, process.exitcode)
        finally:
            process.kill()
            process.join()

    def _cluster(self) -> str:
        """The address of the cluster; a local one is started, and ends with this process."""
        if self.address == "local":
            import ray

            if not ray.is_initialized():
                ray.init(
                    address="local",  # never another's that happens to run here, which Ray would join
                    num_cpus=self.workers,
                    include_dashboard=False,
                    log_to_driver=False,
                )
            return str(ray.get_runtime_context().gcs_address)
        try:  # Ray itself waits a minute
            host, _, port = self.address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, ValueError) as error:
            raise InputError(_no_cluster(self.address, error)) from None
        return self.address


def _drive(parent: int, outcome: Connection, address: str, order: bytes) -> None:
    """Run one pass on the cluster, ``order`` being its stage and tasks; what went wrong is sent back."""
    import ray
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline

    bind(parent)
    os.environ["RAY_ADDRESS"] = address  # Curator's executor connects by it
    try:
        try:
            ray.init(address=address, log_to_driver=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(_no_cluster(address, error)) from None
        work, tasks = ray.cloudpickle.loads(order)
        Pipeline(name="curation", stages=[work]).run(RayDataExecutor(), initial_tasks=tasks)
    except BaseException as error:
        cause = getattr(error, "cause", None) or error  # of a task: what it raised
        try:
            outcome.send(cause)
        except Exception:  # it cannot be sent as it is
            outcome.send(RuntimeError(f"{type(cause).__name__}: {cause}"))
        raise


def _told(receiver: Connection, status: int | None) -> list[BaseException]:
    """What the driving process said of its failure, or its status."""
    try:
        if receiver.poll():
            return [receiver.recv()]
    except EOFError:
        pass
    return [RuntimeError(f"the process that drives Ray ended with status {status}")] if status else []


def _no_cluster(address: str, error: BaseException) -> str:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return (
        f"no Ray cluster answers at {address} (site.ray): {first}. Give HOST:PORT of its head node, "
        "as `ray status` shows it, or 'local' to start one here"
    )
