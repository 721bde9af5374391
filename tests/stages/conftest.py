"""Steps for the stage tests: the real stages on the real libraries, over small real data."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from pipeline import schema  # noqa: E402
from pipeline.stages.step import Step  # noqa: E402
from pipeline.threads import thread_environment  # noqa: E402

SECTIONS = (
    "curate",
    "model",
    "pretrain",
    "train",
    "reward",
    "sample",
    "align",
    "evaluate",
    "export",
    "deploy",
    "launch",
)
TINY = {
    "model": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "layers": 2,
        "heads": 2,
        "kv_heads": 1,
        "vocab_size": 600,
    },
    "pretrain": {
        "max_steps": 12,
        "global_batch_size": 8,
        "micro_batch_size": 8,
        "warmup_steps": 2,
        "lr": 0.008,  # at 0.02 some orders of the data leave a model from which no preference training gets away whole
    },
    "train": {"max_steps": 8, "global_batch_size": 8, "micro_batch_size": 4, "warmup_steps": 2},
    "reward": {"max_steps": 8, "global_batch_size": 8, "micro_batch_size": 8, "warmup_steps": 2},
    "align": {"max_steps": 8, "global_batch_size": 4, "micro_batch_size": 4, "warmup_steps": 2},
    "evaluate": {"max_documents": 20, "max_pairs": 20, "generations": 6, "shown": 2, "max_new_tokens": 8},
}


def write_job(
    stage: str,
    work: Path,
    inputs: dict[str, Path] | None = None,
    recipe: schema.Recipe | None = None,
    earlier: Sequence[Path] = (),
    **changes: Any,
) -> Path:
    """A job file for one stage; ``changes`` are ``section={setting: value}``."""
    recipe = recipe or schema.Recipe()
    for section, values in {**TINY, **changes}.items():
        for name, value in {**TINY.get(section, {}), **changes.get(section, values)}.items():
            setattr(getattr(recipe, section), name, value)
    work.mkdir(parents=True, exist_ok=True)
    job = work / "job.json"
    settings = {section: dataclasses.asdict(getattr(recipe, section)) for section in SECTIONS}
    job.write_text(
        json.dumps(
            {
                "stage": stage,
                "module": f"pipeline.stages.{stage}",
                "recipe": "test",
                "identity": "0" * 64,
                "settings": settings,
                "inputs": {name: str(path) for name, path in (inputs or {}).items()},
                "base_model": None,
                "work": str(work),
                "threads": 2,
                "earlier": [str(path) for path in earlier],
            }
        )
    )
    return job


def start(job: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a stage's process as the controller would."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline.stages", str(job)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **thread_environment(2),
            "HF_HUB_OFFLINE": "1",
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def events(work: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind that a stage wrote."""
    lines = (work / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., Path]:
    """Run a stage to its end in its own process; returns its work folder."""

    def run(stage: str, work: Path, inputs: dict[str, Path] | None = None, **changes: Any) -> Path:
        process = start(write_job(stage, work, inputs, **changes))
        try:
            output, _ = process.communicate(timeout=300)
        finally:
            process.kill()  # a step that hangs must not slow what is tested after it
        assert process.returncode == 0, output
        return work

    return run


@pytest.fixture(scope="session")
def curated(tmp_path_factory: pytest.TempPathFactory, run_stage: Callable[..., Path]) -> Path:
    """Curated documentation of one real package."""
    sources = [schema.Source(kind="python-docs", packages=["networkx"])]
    wanted = {"sources": sources, "max_characters": 500}
    work = run_stage("curate", tmp_path_factory.mktemp("curate"), curate=wanted)
    return work / "output"


@pytest.fixture(scope="session")
def pretrained(
    tmp_path_factory: pytest.TempPathFactory, curated: Path, run_stage: Callable[..., Path]
) -> Path:
    return run_stage("pretrain", tmp_path_factory.mktemp("pretrain"), {"data": curated}) / "output"


def load_step(job: Path) -> Step:
    """The step of a job file, for calling a stage's parts in this process."""
    return Step.load(job)
