"""The tiny recipe in full: it must learn what the README says, and survive a kill.

``make test-full`` runs it anew in a folder of its own; with ``LIFECYCLE_RUNS`` set, what is
already there is used where it is up to date.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Lifecycle, free_ports

pytestmark = pytest.mark.full
RECIPE = "llama-tiny"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lifecycle]:
    runs = os.environ.get("LIFECYCLE_RUNS")
    lifecycle = Lifecycle(Path(runs).resolve() if runs else tmp_path_factory.mktemp("runs"), free_ports())
    lifecycle("run", recipe=RECIPE)
    yield lifecycle
    lifecycle("stop", recipe=RECIPE)


@pytest.fixture(scope="module")
def report(tiny: Lifecycle) -> dict[str, Any]:
    return json.loads((tiny.latest("evaluate", RECIPE) / "evaluation.json").read_text())


def test_enough_was_scored(report: dict[str, Any]) -> None:
    scored = report["scored"]
    assert min(scored["answers"], scored["style pairs"], scored["content pairs"]) >= 1000


def test_pretraining_beats_the_ngrams(report: dict[str, Any]) -> None:
    perplexity = report["models"]["pretrain"]["perplexity"]
    assert perplexity <= 0.10 * report["baselines"]["unigram_perplexity"]
    assert perplexity < report["baselines"]["bigram_perplexity"]


def test_fine_tuning_lowers_the_answer_loss_and_reads_the_question(report: dict[str, Any]) -> None:
    assert report["changes"]["train"]["answer_loss_relative"] <= -0.10
    assert report["models"]["train"]["wrong_question_gap"] >= 0.2


def test_alignment_moves_the_style_and_keeps_the_rest(report: dict[str, Any]) -> None:
    change = report["changes"]["align"]
    assert report["models"]["align"]["preference"]["style"]["summed"] >= 0.90
    assert change["preference"]["style"]["summed"] >= 0.10
    assert change["house_style_share"] >= 0.20
    assert change["preference"]["content"]["summed_ci"][1] >= 0
    assert change["answer_loss_relative"] <= 0.07


def test_no_process_passed_six_gib_and_the_chain_is_quick(tiny: Lifecycle) -> None:
    stages = ("curate", "pretrain", "train", "align", "evaluate", "export", "deploy")
    manifests = [json.loads((tiny.latest(stage, RECIPE) / "manifest.json").read_text()) for stage in stages]
    peaks = [manifest["peak_memory_gb"] for manifest in manifests]
    assert max(*peaks, manifests[-1]["metrics"]["server_peak_memory_gb"]) < 6 * 1.073741824
    assert sum(manifest["seconds"] for manifest in manifests) < 12 * 60


def test_kill_in_the_middle_of_alignment_gives_bit_identical_weights(tiny: Lifecycle, tmp_path: Path) -> None:
    other = tiny.copy(tmp_path, ("curate", "pretrain", "train"), RECIPE)
    other.kill_step("align", RECIPE)
    other("align", recipe=RECIPE)
    weights = "model/model.safetensors"
    same = (other.latest("align", RECIPE) / weights).read_bytes()
    assert same == (tiny.latest("align", RECIPE) / weights).read_bytes()
