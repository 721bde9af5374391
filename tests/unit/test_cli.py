"""The command line: verbs, exit statuses, and what `make` passes on."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.graph import STAGES
from pipeline.toolchains import ROOT


def test_every_stage_is_a_verb_and_a_make_target() -> None:
    help_text = subprocess.run(
        [sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for stage in STAGES:
        assert f"\n    {stage.name} " in help_text
        dry = subprocess.run(["make", "-n", stage.name], cwd=ROOT, capture_output=True, text=True, check=True)
        assert f"-m pipeline {stage.name} " in dry.stdout


def test_explain_says_the_value_and_the_layers(capsys: pytest.CaptureFixture[str]) -> None:
    # The order of words is the Makefile's.
    assert main(["explain", "--site", "local", "--set", "align.beta=0.2", "llama-tiny", "align.beta"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("align.beta = 0.2: strength of the pull")
    assert "set by SET" in said
    assert "over 0.1 from configs file: configs/align/tiny.yaml" in said
    assert main(["explain", "llama-tiny", "pretrain"]) == 0
    assert "pretrain.lr = 0.004  (configs/pretrain/tiny.yaml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "llama-tinny"], "did you mean 'llama-tiny'?"),
        (["train", "llama-tiny", "--set", "train.lrr=1"], "did you mean 'lr'?"),
        (["explain", "llama-tiny", "train.lrr"], "did you mean 'lr'?"),
        (["run", "llama-tiny", "--site", "lokal"], "did you mean 'local'?"),
        (["chat", "llama-tiny"], "no server of llama-tiny is running"),
    ],
)
def test_mistakes_end_with_status_2_and_one_message(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--runs", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert not list(tmp_path.iterdir())


def test_a_plan_without_environments_says_which_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LIFECYCLE_VENVS", str(tmp_path))
    assert main(["plan", "llama-tiny", "--runs", str(tmp_path / "runs")]) == 2
    assert "run `make env-core`" in capsys.readouterr().err


def test_stop_without_a_server_is_not_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stop", "llama-tiny", "--runs", str(tmp_path)]) == 0
    assert "no server of llama-tiny was started here" in capsys.readouterr().out


def test_the_controller_starts_quickly() -> None:
    took = []
    for _ in range(3):
        began = time.monotonic()
        subprocess.run(
            [sys.executable, "-m", "pipeline", "--version"], cwd=ROOT, check=True, capture_output=True
        )
        took.append(time.monotonic() - began)
    assert min(took) < 2.0  # 0.1 s on a quiet machine; benchmarks/controller.py measures it
