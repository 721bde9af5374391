"""Every line of the GPU benchmark, on a miniature model on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT


def test_the_gpu_benchmark_runs_on_a_cpu_in_miniature(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_gpu", "--tiny", "--folder", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    table = [line for line in done.stdout.split("| --- |", 1)[1].splitlines() if line.startswith("| ")]
    assert len(table) == 10
    for line in table:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert float(cells[3].replace(",", "")) > 0  # tokens a second
        assert float(cells[4]) > 0
    assert not list(tmp_path.iterdir())


def test_without_a_gpu_the_whole_benchmark_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.training_gpu"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert "--tiny" in done.stderr
