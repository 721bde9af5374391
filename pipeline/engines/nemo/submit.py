"""Handing a recipe to NeMo-Run: its files, the command that starts it, and the start itself.

NeMo-Run starts a training function from a file of its own form through torchrun; the command written
here is the one that its local executor makes (a test holds them together).
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

RECIPE, READABLE, COMMAND = "recipe.nemo-run", "recipe.yaml", "submit.sh"
RUNNER = "nemo_run.core.runners.fdl_runner"


def write(recipe: Any, name: str, nodes: int, gpus: int, folder: Path) -> list[str]:
    """Write the recipe for NeMo-Run and for readers, and the command; returns the command.

    On several nodes the command is given once on each, with the first node's name in ``HEAD_NODE``.
    """
    from nemo_run.core.serialization.yaml import YamlSerializer
    from nemo_run.core.serialization.zlib_json import ZlibJSONSerializer

    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(ZlibJSONSerializer().serialize(recipe), encoding="utf-8")
    (folder / READABLE).write_text(YamlSerializer().serialize(recipe), encoding="utf-8")
    command = launch(folder / RECIPE, name, nodes, gpus)
    line = shlex.join(command).replace("'$HEAD_NODE:29500'", '"$HEAD_NODE:29500"')
    (folder / COMMAND).write_text(f"#!/bin/sh\nexec {line}\n", encoding="utf-8")
    (folder / COMMAND).chmod(0o755)
    return command


def launch(recipe: Path, name: str, nodes: int, gpus: int) -> list[str]:
    """The command that trains: torchrun over NeMo-Run's runner."""
    meeting = "localhost:0" if nodes == 1 else "$HEAD_NODE:29500"
    return [
        *("torchrun", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting, "--rdzv-id", name),
        *("--nnodes", str(nodes), "--nproc-per-node", str(gpus), "--tee", "3"),
        *("-m", RUNNER, "-n", name, str(recipe)),
    ]


def train(recipe: Any, name: str, gpus: int) -> bool:
    """Run the recipe on this machine's GPUs through NeMo-Run, to its end; returns whether it succeeded.

    ``NEMORUN_HOME`` says where NeMo-Run keeps its logs; it reads that when it is imported.
    """
    import nemo_run

    executor = nemo_run.LocalExecutor(ntasks_per_node=gpus, launcher="torchrun")
    with nemo_run.Experiment(name, executor=executor) as experiment:
        experiment.add(recipe, executor=executor, name=name)
        experiment.run(sequential=True, detach=False, tail_logs=True)
    # Not experiment.status(), which may still say RUNNING then.
    return all(job.state.name == "SUCCEEDED" for job in experiment.jobs)
