"""The weights in a bundle of several files and folders."""

from __future__ import annotations

import shutil

from pipeline.stages.step import Step, write_json


def run(step: Step) -> None:
    """Restarts from nothing when interrupted."""
    bundle = step.output / "bundle"
    shutil.copytree(step.inputs["train"] / "model", bundle / "model")
    write_json(bundle / "config.json", {"identity": step.identity})
    (bundle / "empty").write_text("")
    step.finish(metrics={}, headline="exported")
