"""What the controller hands to the ``launch`` toolchain, and what comes back.

::

    runs/RECIPE/launch/NUMBER/
      RECIPE.yaml  _site.yaml  the settings as they were when the chain was submitted
      order.json               the steps, their commands and whom each waits for
      jobs.json                what was sent: the jobs' numbers, scripts and logs; written last
      ends/STAGE.RESTART       exit status and time of each time that a job ran (Slurm)
      seen.json                the jobs as they were last seen; a cluster forgets them
      launch.log               what NeMo-Run said

Standard library only: both sides import this.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.errors import UserError
from pipeline.stages.step import write_json

PINNED = "/etc/lifecycle"  # where a pod finds the recipe and the site
SITE_FILE = "_site.yaml"  # no recipe's name begins so
ORDER, JOBS, SEEN, ENDS, LOG = "order.json", "jobs.json", "seen.json", "ends", "launch.log"


@dataclass(frozen=True)
class StepOrder:
    """One step: its command on the machine of its job, and the steps that must end well before."""

    stage: str
    command: list[str]
    after: list[str]


@dataclass(frozen=True)
class Order:
    """A chain to submit.

    ``cwd`` is where the commands run and ``environment`` what is set there; ``site`` the
    site's settings (:class:`pipeline.schema.Site`) as plain values; ``files`` the texts that
    the machines of a Kubernetes site cannot read from a shared disk, by name; ``recipe`` the
    recipe's name as a cluster takes it: letters, digits and dashes.
    """

    recipe: str
    number: int
    created: str
    cwd: str
    environment: dict[str, str]
    site: dict[str, Any]
    steps: list[StepOrder]
    files: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Write the order down."""
        write_json(folder / ORDER, asdict(self))


@dataclass(frozen=True)
class Job:
    """A step as it was sent: ``id`` is the cluster's, empty in a dry run; ``text`` what was sent.

    ``log``: where its output goes on the shared disk, with ``{id}`` and ``{restart}`` to fill
    in; empty where the cluster keeps it.
    """

    stage: str
    id: str
    text: str
    log: str
    after: list[str]


def read_order(folder: Path) -> Order:
    """The order in a folder.  Raises :class:`UserError` for one that is not what was written."""
    with _as_written(folder / ORDER):
        plain = strict_json.loads((folder / ORDER).read_text(encoding="utf-8"))
        plain["steps"] = [StepOrder(**step) for step in plain["steps"]]
        return Order(**plain)


def write_jobs(folder: Path, jobs: list[Job]) -> None:
    """Write down what was sent; a folder without this was never sent."""
    write_json(folder / JOBS, [asdict(job) for job in jobs])


def read_jobs(folder: Path) -> list[Job]:
    """What was sent from a folder, in the order of the chain.  Raises :class:`UserError` for what is not as it was written."""
    with _as_written(folder / JOBS):
        return [Job(**plain) for plain in strict_json.loads((folder / JOBS).read_text(encoding="utf-8"))]


@contextmanager
def _as_written(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        why = error.strerror if isinstance(error, OSError) else (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{file} is not what a submission wrote ({why}): look in the queue for its jobs, then remove {file.parent}"
        ) from None


def submissions(recipe_folder: Path) -> list[Path]:
    """The folders of a recipe's submissions, oldest first."""
    found = recipe_folder / "launch"
    if not found.is_dir():
        return []
    sent = [path for path in found.iterdir() if path.name.isdigit() and (path / JOBS).is_file()]
    return sorted(sent, key=lambda path: int(path.name))


def listed(names: list[str]) -> str:
    """Names as a person lists them."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
