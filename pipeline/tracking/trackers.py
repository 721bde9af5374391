"""The trackers, each behind the same three calls.

Packages are imported where they are used: a tracker that is off costs nothing.  None is allowed to
report on itself, on the machine or on the code: what is sent is what is handed over here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

ENDED = ("finished", "failed", "interrupted")
MLFLOW_STATES = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
PARAMETER_CHARACTERS = 6000  # MLflow's limit for one parameter
PARAMETERS = 100  # MLflow's limit for one request

QUIET = {
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "WANDB_ERROR_REPORTING": "false",
    "WANDB_SILENT": "true",
}


@dataclass(frozen=True)
class Subject:
    """The step that is told of: names, identity, settings by dotted name, and where files may lie."""

    recipe: str
    stage: str
    identity: str
    settings: dict[str, Any]
    folder: Path

    @property
    def name(self) -> str:
        """What a person reads; with enough of the identity to tell two from one another."""
        return f"{self.stage}-{self.identity[:12]}"


class Tracker(Protocol):
    """One tracker of one step."""

    name: str

    def log(self, step: int, values: dict[str, float]) -> None:
        """Figures at an optimiser step."""

    def finish(self, figures: dict[str, float], ended: str) -> None:
        """The figures of the whole step, and how it ended: one of :data:`ENDED`."""


class TensorBoard:
    """Event files in ``tracking/tensorboard/STAGE-IDENTITY``; every attempt adds one."""

    name = "TensorBoard"

    def __init__(self, subject: Subject) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(subject.folder / "tensorboard" / subject.name))
        listed = "\n".join(f"    {key}: {value}" for key, value in sorted(subject.settings.items()))
        self._writer.add_text("settings", listed)
        self._last = 0

    def log(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)
        self._last = max(self._last, step)
        self._writer.flush()

    def finish(self, figures: dict[str, float], ended: str) -> None:
        for key, value in figures.items():
            self._writer.add_scalar(f"final/{key}", value, self._last)
        self._writer.close()


class WeightsAndBiases:
    """A run in the project, named by the step's identity; offline runs lie in ``tracking/wandb``."""

    name = "Weights & Biases"

    def __init__(self, subject: Subject, project: str) -> None:
        import wandb

        subject.folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            console="off",
            disable_git=True,
            save_code=False,
            disable_job_creation=True,
            host="withheld",
            x_disable_stats=True,
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        )
        self._run = wandb.init(
            project=project,
            group=subject.recipe,
            job_type=subject.stage,
            name=subject.name,
            id=subject.identity[:32],
            resume="allow",
            dir=str(subject.folder),
            config=subject.settings,
            settings=settings,
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def finish(self, figures: dict[str, float], ended: str) -> None:
        self._run.summary.update({f"final/{key}": value for key, value in figures.items()})
        self._run.finish(exit_code=0 if ended == "finished" else 1)


class MLflow:
    """A run on the tracking server, found again by the tag ``lifecycle.identity``."""

    name = "MLflow"

    def __init__(self, subject: Subject, address: str, experiment: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient(tracking_uri=address)
        found = self._client.get_experiment_by_name(experiment)
        place = found.experiment_id if found else self._client.create_experiment(experiment)
        mine = f"tags.`lifecycle.identity` = '{subject.identity}'"
        runs = self._client.search_runs([place], mine, max_results=1)
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        tags = {"lifecycle.identity": subject.identity, "lifecycle.stage": subject.stage}
        tags["lifecycle.recipe"] = subject.recipe
        self._id = self._client.create_run(place, tags=tags, run_name=subject.name).info.run_id
        given = [Param(key, str(value)[:PARAMETER_CHARACTERS]) for key, value in subject.settings.items()]
        for start in range(0, len(given), PARAMETERS):
            self._client.log_batch(self._id, params=given[start : start + PARAMETERS])

    def log(self, step: int, values: dict[str, float]) -> None:
        import time

        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [Metric(key, value, now, step) for key, value in values.items()])

    def finish(self, figures: dict[str, float], ended: str) -> None:
        self.log(0, {f"final/{key}": value for key, value in figures.items()})
        self._client.set_terminated(self._id, MLFLOW_STATES[ended])


def open_trackers(subject: Subject, tracking: dict[str, Any]) -> list[Tracker]:
    """The trackers that the settings of ``tracking`` ask for; raises what they raise."""
    os.environ.update({key: value for key, value in QUIET.items() if key not in os.environ})
    trackers: list[Tracker] = []
    if tracking["tensorboard"]:
        trackers.append(TensorBoard(subject))
    if tracking["wandb"]:
        trackers.append(WeightsAndBiases(subject, tracking["wandb"]))
    if tracking["mlflow"]:
        trackers.append(MLflow(subject, tracking["mlflow"], tracking["experiment"] or subject.recipe))
    return trackers
