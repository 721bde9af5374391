"""Trackers that the figures of a run are sent to beside its own record; all are off by default."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from pipeline.schema.declare import setting

told = partial(setting, identity=False)


@dataclass
class Tracking:
    """Who else is told the figures of training and evaluation. Never bears identity.

    Files go to ``runs/RECIPE/tracking``, and nothing leaves the machine but to an address that is given here
    or in the environment.  Keys are taken from the environment (on a cluster: name them in
    ``site.secrets``) and never written down.
    """

    tensorboard: bool = told(False, "write TensorBoard's event files to runs/RECIPE/tracking/tensorboard")
    wandb: str | None = told(
        None,
        "project of Weights & Biases; WANDB_API_KEY, WANDB_ENTITY, WANDB_BASE_URL and WANDB_MODE=offline are "
        "taken from the environment",
    )
    mlflow: str | None = told(
        None,
        "address of an MLflow tracking server, e.g. http://127.0.0.1:5000; MLFLOW_TRACKING_TOKEN and the like "
        "are taken from the environment",
    )
    experiment: str | None = told(None, "MLflow's experiment; null: the recipe's name")
