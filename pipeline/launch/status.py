"""What became of the jobs of a submission, as far as the cluster, or what it left, can tell.

Slurm forgets a job some minutes after its end, and its accounting may be off.  So a job is
looked up in this order: Slurm (``scontrol show job``), the exit status that the job itself
left (``ends/``), and what was seen of it last (``seen.json``).  Kubernetes is asked through
the ``launch`` toolchain, which writes what it finds into ``seen.json``.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.launch.handover import hand_over
from pipeline.launch.orders import ENDS, SEEN, Job, Order, listed, read_jobs, read_order, submissions
from pipeline.stages.step import write_json

LIVE = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "STOPPED")
BAD = ("FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "PREEMPTED")
UNKNOWN = "UNKNOWN"
MEANINGS = {
    1: "the step failed",
    2: "it refused its input",
    3: "the gate is closed",
    143: "interrupted; it goes on when it is submitted again",
}
TAIL_LINES = 4
ASK_S = 20.0


@dataclass(frozen=True)
class JobStatus:
    """A job now: its state in the cluster's word, why in a person's, and its log.

    ``log`` is a file, or a command that shows it; ``said`` the log's last lines where it is no file.
    """

    stage: str
    id: str
    state: str
    reason: str = ""
    restarts: int = 0
    host: str = ""
    log: str = ""
    exit_status: int | None = None
    said: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def tail(self) -> list[str]:
        """The last lines of the log; empty where there is none to read."""
        if self.said:
            return self.said
        try:
            text = Path(self.log).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return []
        return [line for line in text.splitlines() if line.strip()][-TAIL_LINES:]


def at_work(recipe_folder: Path) -> list[str]:
    """The jobs of the recipe's last submission that wait or run, in words."""
    found = submissions(recipe_folder)
    jobs = jobs_of(found[-1]) if found else []
    return [f"{job.stage} (job {job.id}, {job.state.lower()})" for job in jobs if job.live]


def jobs_of(folder: Path) -> list[JobStatus]:
    """The jobs of a submission as they are now; remembers what it saw."""
    order, jobs = read_order(folder), read_jobs(folder)
    if order.site["kind"] == "slurm":
        found = _slurm(order, jobs, folder)
    else:
        hand_over("look", folder)
        found = last_seen(folder)
    return found


def _slurm(order: Order, jobs: list[Job], folder: Path) -> list[JobStatus]:
    seen = read_seen(folder)
    found: dict[str, JobStatus] = {}
    answers = shutil.which("scontrol") is not None
    for job in jobs:
        try:
            asked = _asked(job) if answers else None
        except subprocess.TimeoutExpired:
            asked, answers = None, False  # nor will it for the next
        status = asked or _left(job, folder) or seen.get(job.stage)
        if status is None or (status is seen.get(job.stage) and status.live):
            status = _guess(job, status, found)
        last = seen.get(job.stage)
        host = status.host or (last.host if last and last.restarts == status.restarts else "")
        found[job.stage] = replace(status, host=host, log=_log(job, status.restarts))
    if found != seen:
        write_seen(folder, list(found.values()))
    return list(found.values())


def _asked(job: Job) -> JobStatus | None:
    """What Slurm says of a job; None where it does not know it (any more)."""
    done = subprocess.run(
        ["scontrol", "show", "job", job.id, "--oneliner"],
        capture_output=True,
        text=True,
        timeout=ASK_S,
        check=False,
    )
    if done.returncode or "JobState=" not in done.stdout:
        return None
    told = parse_job(done.stdout)
    state, restarts = told["JobState"], int(told.get("Restarts", "0"))
    status, _, signal = told.get("ExitCode", "0:0").partition(":")
    ended = None if state in LIVE else int(status)
    return JobStatus(
        job.stage,
        job.id,
        state,
        _reason(told, ended, int(signal or 0), job),
        restarts,
        "" if told.get("NodeList", "(null)") == "(null)" else told["NodeList"],
        exit_status=ended,
    )


def parse_job(line: str) -> dict[str, str]:
    """The ``Name=value`` words of ``scontrol show job --oneliner``; a value may hold spaces."""
    return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w/:&.-]+=|\s*$)", line.strip(), flags=re.DOTALL))


def _reason(told: dict[str, str], ended: int | None, signal: int, job: Job) -> str:
    reason = told.get("Reason", "None")
    if ended:
        return f"exit status {ended}: {MEANINGS.get(ended, 'see its log')}"
    if signal:
        return f"ended by signal {signal}"
    if reason == "Dependency":
        return f"waits for {listed(job.after)}"
    if reason == "DependencyNeverSatisfied" or (
        told["JobState"] == "CANCELLED" and told.get("NodeList") == "(null)"
    ):
        return f"never started: {' or '.join(job.after)} did not end well" if job.after else "never started"
    return "" if reason == "None" else reason


def _left(job: Job, folder: Path) -> JobStatus | None:
    """What the job itself left when it last ended; None while it has not ended."""
    ends = sorted((folder / ENDS).glob(f"{job.stage}.*"), key=lambda path: int(path.suffix[1:]))
    if not ends:
        return None
    words = ends[-1].read_text(encoding="ascii").split()
    if not words:
        return None
    status, restarts = int(words[0]), int(ends[-1].suffix[1:])
    if status == 0:
        return JobStatus(job.stage, job.id, "COMPLETED", "", restarts, exit_status=0)
    why = f"exit status {status}: {MEANINGS.get(status, 'see its log')}"
    return JobStatus(job.stage, job.id, "FAILED", why, restarts, exit_status=status)


def _guess(job: Job, last: JobStatus | None, before: dict[str, JobStatus]) -> JobStatus:
    """A job that Slurm does not know, and that left nothing."""
    failed = [stage for stage in job.after if stage in before and before[stage].state in BAD]
    if failed:
        why = f"never started: {listed(failed)} did not end well"
        return JobStatus(job.stage, job.id, "CANCELLED", why)
    if last is not None:
        return replace(last, state=UNKNOWN, reason=f"Slurm does not know it any more; last seen {last.state}")
    return JobStatus(job.stage, job.id, UNKNOWN, "Slurm does not know it, or cannot be asked here")


def _log(job: Job, restarts: int) -> str:
    return job.log.replace("{id}", job.id).replace("{restart}", str(restarts))


def last_seen(folder: Path) -> list[JobStatus]:
    """The jobs of a submission as they were last seen, in the order of the chain."""
    seen = read_seen(folder)
    return [seen[job.stage] for job in read_jobs(folder) if job.stage in seen]


def read_seen(folder: Path) -> dict[str, JobStatus]:
    """The jobs as they were last seen, by stage."""
    try:
        plain: dict[str, dict[str, Any]] = strict_json.loads((folder / SEEN).read_text(encoding="utf-8"))
        return {stage: JobStatus(**status) for stage, status in plain.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # nothing was seen yet, or what was is lost: the cluster is asked again


def write_seen(folder: Path, jobs: list[JobStatus]) -> None:
    """Remember the jobs as they are seen now."""
    write_json(folder / SEEN, {job.stage: asdict(job) for job in jobs})


def gone(job: Job, last: JobStatus | None) -> JobStatus:
    """A job that its cluster does not know any more."""
    if last is None:
        return JobStatus(job.stage, job.id, "UNKNOWN", "the cluster does not know it")
    if last.live:
        return replace(
            last, state="UNKNOWN", reason=f"the cluster does not know it any more; last seen {last.state}"
        )
    return last
