"""The CPU guard is needed, and harmless.

When the first test fails, AutoModel no longer makes the calls that ``cpu.py`` guards
against: remove the guard.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, write_job

UNGUARDED = """
import sys
from pathlib import Path
from pipeline.engines.automodel import session
session.make_cuda_calls_harmless = lambda: None
from pipeline.stages import pretrain
from pipeline.stages.step import Step
pretrain.run(Step.load(Path(sys.argv[1])))
"""


def test_automodel_still_asks_for_cuda_on_a_cpu(tmp_path: Path, curated: Path) -> None:
    if torch.cuda.is_available():
        return  # nothing is guarded where CUDA is
    job = write_job("pretrain", tmp_path, {"data": curated}, pretrain={"max_steps": 3})
    done = subprocess.run(
        [sys.executable, "-c", UNGUARDED, str(job)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode != 0
    assert "CUDA" in done.stderr or "cuda" in done.stderr or "NVIDIA" in done.stderr


def test_the_guard_changes_no_other_device() -> None:
    from nemo_automodel._transformers import auto_model

    from pipeline.engines.automodel.cpu import make_cuda_calls_harmless

    make_cuda_calls_harmless()
    make_cuda_calls_harmless()
    if not torch.cuda.is_available():
        assert auto_model.torch.device("cuda", 0) == torch.device("cpu")
    assert auto_model.torch.device("cpu") == torch.device("cpu")
    assert auto_model.torch.device("meta") == torch.device("meta")
    assert auto_model.torch.float32 is torch.float32


@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_weights_on_one_gpu_stay_as_they_were_asked_for(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """AutoModel's own DDP, told of a GPU; the model writes down what it is cast to."""
    from nemo_automodel.components.distributed import ddp
    from nemo_automodel.components.distributed.config import DDPConfig

    from pipeline.engines.automodel.one_gpu import keep_weights

    class Recorder(torch.nn.Linear):
        def to(self, where: object) -> Recorder:
            asked.append(where)
            return self

    asked: list[object] = []
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(ddp.dist, "get_world_size", lambda: 1)
    monkeypatch.setattr(ddp, "torch", torch)
    ddp.parallelize_ddp(Recorder(2, 2), DDPConfig(), device=gpu)
    assert asked == [gpu, torch.bfloat16]  # else AutoModel has mended it, and one_gpu.py can go
    asked.clear()
    keep_weights(kind)
    ddp.parallelize_ddp(Recorder(2, 2), DDPConfig(), device=gpu)
    assert asked == [gpu, getattr(torch, kind)]
