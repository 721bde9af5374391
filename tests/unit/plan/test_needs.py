"""What a recipe's training steps need: where, how much, how long, for what money, and what fits instead."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from pipeline import recipe, schema
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.plan import calibrate, hardware, money, place, verb
from pipeline.plan.calibrate import Measured
from pipeline.plan.data import looks, sequence_tokens
from pipeline.plan.hardware import parse
from pipeline.plan.needs import Needs, needs, plain, refusal
from pipeline.plan.place import Machine, places
from pipeline.plan.serving.deployment import deployment
from pipeline.toolchains import ROOT

LAPTOP = Machine(0, 0.0, 25e9)
MACHINE = "2 cores of a processor (here)"
CALIBRATED = Measured(
    identity="i" * 64,
    machine=MACHINE,
    date="2026-11-22",
    processes=1,
    steps=2,
    step_s=0.5,
    tokens=1_000.0,
    max_steps=100,
    run_tokens=90_000.0,
    setup_s=7.0,
    validation_s=2.0,
    peak_memory_gb=1.5,
)


@pytest.fixture(autouse=True)
def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.shutil, "which", lambda _: None)
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")


def load(name: str, settings: str = "", site: str = "local") -> recipe.LoadedRecipe:
    return recipe.load(name, ROOT, settings, site)


def plan(name: str, gpus: str, settings: str = "", stage: str = "train", **known: Any) -> Needs:
    loaded = load(name, settings)
    [found] = needs(loaded, [stage], places(loaded.settings, parse(gpus)), **known)
    return found


def test_named_gpus_give_memory_time_hours_and_money() -> None:
    found = plan("llama-8b", "8xH100-80GB")
    assert found.feasible
    assert found.memory is not None
    assert found.memory.value == pytest.approx(sum(item.value for item in found.memory.inputs))
    assert found.tokens is not None
    settings = load("llama-8b").settings
    whole = settings.train.max_steps * settings.train.global_batch_size * settings.model.context
    assert found.tokens.value == whole
    assert found.time is not None
    assert found.prediction is not None
    assert found.time.value == pytest.approx(whole / (8 * found.prediction.tokens_per_gpu.value))
    assert found.gpu_hours is not None
    assert found.gpu_hours.value == pytest.approx(8 * found.time.value / 3600)
    assert found.money is not None
    assert found.money.value == pytest.approx(found.gpu_hours.value * money.hourly("H100-80GB").value)
    # Predictions carry the error of what predicted them.
    assert found.record()["seconds_error"]["mean"] == found.prediction.error.value  # type: ignore[union-attr]


def test_more_machines_are_quicker_and_dearer_a_second() -> None:
    one, four = plan("llama-8b", "8xH100-80GB"), plan("llama-8b", "4x8xH100-80GB")
    assert four.layout.gpus == 32
    assert four.time.value < one.time.value  # type: ignore[union-attr]
    assert four.gpu_hours.value >= one.gpu_hours.value  # type: ignore[union-attr]


def test_what_does_not_fit_comes_with_what_does_and_that_fits() -> None:
    found = plan("llama-8b", "H100-80GB")
    assert not found.feasible
    assert found.alternatives
    assert [each.time.value for each in found.alternatives] == sorted(  # type: ignore[union-attr]
        each.time.value
        for each in found.alternatives  # type: ignore[union-attr]
    )
    for each in found.alternatives:
        other = plan("llama-8b", each.gpus, each.settings)
        assert other.feasible
        assert other.memory.value == pytest.approx(each.memory.value, rel=0.01)  # type: ignore[union-attr]
    said = refusal(load("llama-8b"), found)
    assert said is not None
    assert said.startswith("llama-8b: train does not fit: ")
    assert said.count('SET="') == len(found.alternatives)


def test_a_layout_that_cannot_be_says_why_and_needs_no_numbers() -> None:
    found = plan("llama-8b", "3xH100-80GB")
    assert not found.feasible
    assert found.fault is not None
    assert "3 data-parallel ranks" in found.fault
    assert found.quantities() == []
    assert found.alternatives
    assert all(plan("llama-8b", each.gpus, each.settings).feasible for each in found.alternatives)
    assert "cannot be spread over 3 x H100-80GB" in str(refusal(load("llama-8b"), found))


def test_gpu_hours_are_those_of_the_layout_whatever_the_engine() -> None:
    nemo = plan("llama-8b", "2x8xH100-80GB", "train.engine=nemo train.micro_batch_size=1")
    assert nemo.layout.gpus == 16
    assert nemo.gpu_hours.value == pytest.approx(16 * nemo.time.value / 3600)  # type: ignore[union-attr]


def test_suggestions_for_the_recipes_own_gpus_are_whole_and_can_be_pasted() -> None:
    loaded = load("llama-70b", "train.peft=none")
    [found] = needs(loaded, ["train"], places(loaded.settings))
    assert not found.feasible
    assert found.alternatives
    for each in found.alternatives:
        pasted = load("llama-70b", f"train.peft=none {each.settings}")
        [again] = needs(pasted, ["train"], places(pasted.settings))
        assert again.feasible
        assert again.memory.value == pytest.approx(each.memory.value, rel=0.01)  # type: ignore[union-attr]


def test_a_model_that_no_one_machine_trains_is_offered_less_work_on_more(tmp_path: Path) -> None:
    configs = json.loads((ROOT / "pipeline/plan/published/models.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(configs["deepseek-v3"]))
    found = plan("llama-8b", "8xH100-80GB", f"model.base={tmp_path}")
    assert not found.feasible
    assert found.alternatives
    assert all("lora" in each.settings or "xH100" in each.gpus for each in found.alternatives)


# ----------------------------------------------------------------------------------------- places


def test_a_recipe_made_for_gpus_is_planned_for_its_own_where_there_are_none() -> None:
    found = places(load("llama-70b").settings)("train")
    assert (found.gpus, found.gpu, found.assumed) == (8, hardware.gpu("h100"), True)
    assert places(load("llama-tiny").settings)("train").gpus == 0


def test_a_sites_own_kind_counts_before_the_recipes() -> None:
    loaded = load("llama-8b", "site.gpu=H200", "slurm")
    found = places(loaded.settings)("train")
    assert (found.gpus, found.gpu) == (8, hardware.gpu("h200"))
    assert found.gpu_bytes > 140e9
    # Planning leaves the recipe as it is.
    assert "train" not in loaded.settings.site.slurm.stages


def test_gpus_of_this_machine_are_known_by_the_name_that_the_driver_tells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "81559, NVIDIA H100 80GB HBM3"\necho "81559, NVIDIA H100 80GB HBM3"\n')
    tool.chmod(0o755)
    monkeypatch.setattr(place.shutil, "which", lambda _: str(tool))
    found = Machine.here()
    assert (found.gpus, found.gpu, found.gpu_bytes) == (2, hardware.gpu("h100"), 81559 * 2**20)
    tool.write_text('#!/bin/sh\necho "16000, NVIDIA Something New"\n')
    assert (Machine.here().gpus, Machine.here().gpu) == (1, None)
    assert Machine.here("a100").gpu == hardware.gpu("a100")
    with pytest.raises(UserError, match="Something Old"):
        Machine.here("Something Old")


# ------------------------------------------------------------------------------ data and measurements


def test_counted_tokens_make_a_padded_run_shorter() -> None:
    curated = {
        "metrics": {"pretrain_train_tokens": 4_000_000, "sizes": {"pretrain": {"train": 40_000}}},
        "started": "2026-11-22T00:00:00Z",
    }
    settings = load("llama-tiny").settings
    found = sequence_tokens(settings, "pretrain", 1, curated, None)
    assert (found.value, found.source) == (100, "counted by curation on 2026-11-22")
    before = {
        "metrics": {"tokens": 320_000, "steps": 100},
        "parts": {"settings": {"train": {"global_batch_size": 32}}},
        "started": "2026-11-21T00:00:00Z",
    }
    assert sequence_tokens(settings, "train", 1, curated, before).value == 100
    assert (
        sequence_tokens(
            settings,
            "align",
            2,
            curated,
            {**before, "parts": {"settings": {"align": {"global_batch_size": 32}}}},
        ).value
        == 50
    )
    assert sequence_tokens(settings, "train", 1, curated, None).value == settings.model.context
    settings.plan.example_tokens = 10_000
    assert sequence_tokens(settings, "train", 1, None, None).value == settings.model.context
    for packing in (True, False):
        words = f"train.packing={str(packing).lower()}"
        short = plan("llama-8b", "8xH100-80GB", f"{words} plan.example_tokens=256")
        full = plan("llama-8b", "8xH100-80GB", words)
        assert short.tokens.value == pytest.approx(full.tokens.value / 8)  # type: ignore[union-attr]
        # Padding is computed, where sequences are not laid end to end.
        share = 1 / 8 if packing else 1
        assert short.time.value == pytest.approx(full.time.value * share)  # type: ignore[union-attr]


def test_looks_at_the_validation_loss_are_counted() -> None:
    assert looks(schema.Train(max_steps=320, validate_every=160)) == 3
    assert looks(schema.Train(max_steps=100, validate_every=200)) == 1
    assert looks(schema.Train(max_steps=100, validate_every=200, best_every=10)) == 11


def test_a_calibration_counts_for_that_step_on_that_machine_alone() -> None:
    loaded = load("llama-tiny")
    known = {
        "measured": {"train": CALIBRATED},
        "identities": {"train": CALIBRATED.identity},
        "machine": MACHINE,
    }
    [found] = needs(loaded, ["train"], lambda _: LAPTOP, **known)
    # 90,000 tokens at 2,000 a second, set-up, and three looks at the validation loss.
    assert found.time is not None
    assert found.time.value == 7 + 45 + 3 * 2
    assert found.measured
    assert (found.gpu_hours, found.money) == (None, None)
    for other in ({"identities": {"train": "j" * 64}}, {"machine": "another"}, {"identities": {}}):
        [found] = needs(loaded, ["train"], lambda _: LAPTOP, **{**known, **other})
        assert found.time is None


def test_a_file_of_calibrations_that_is_no_use_is_as_good_as_none(tmp_path: Path) -> None:
    assert calibrate.read(tmp_path) == {}
    file = tmp_path / calibrate.FILE
    for text in ("{", "[]", '{"train": {"step_s": 1}}', '{"train": 5}'):
        file.write_text(text)
        assert calibrate.read(tmp_path) == {}
    file.write_text(json.dumps({"train": dataclasses.asdict(CALIBRATED)}))
    assert calibrate.read(tmp_path) == {"train": CALIBRATED}


# ---------------------------------------------------------------------------------------- serving


def test_the_deployed_model_is_planned_with_its_cache() -> None:
    settings = load("llama-70b").settings
    found = deployment(settings, places(settings, parse("8xH100-80GB"))("deploy"))
    assert found is not None
    assert found.verdict == "fits"
    by_name = {each.name: each.value for each in found.quantities}
    assert by_name["weights"] == pytest.approx(72.7e9, rel=0.01)
    # An fp8 cache of 80 layers, 8 key-value heads of 128: half of the published 327,680 bytes a token.
    assert by_name["cache of a request"] == 327_680 / 2 * settings.model.context
    settings.export.serving.tensor = 1
    settings.export.weights = "bf16"
    assert deployment(settings, places(settings, parse("8xH100-80GB"))("deploy")).verdict == "does not fit"  # type: ignore[union-attr]
    settings.export.gpu = "L4"
    settings.export.weights = "nvfp4"
    with pytest.raises(UserError, match="L4 does not compute in nvfp4"):
        deployment(settings, places(settings, None)("deploy"))


def test_on_processors_the_cache_that_is_set_aside_counts() -> None:
    settings = load("llama-tiny", "export.kv_cache_gb=3").settings
    found = deployment(settings, LAPTOP)
    assert found is not None
    assert found.quantities[0].value == pytest.approx(3 * 2**30 + 4 * 2_004_288)
    assert deployment(settings, Machine(0, 0.0, 2e9)).verdict == "does not fit"  # type: ignore[union-attr]


# --------------------------------------------------------------------------------------- the verb


def test_the_verb_prints_a_table_what_it_rests_on_and_derivations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "llama-8b", "--runs", str(tmp_path), "--gpus", "8xH100-80GB"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "on 8 x H100-80GB, as named\n" in said
    for column in ("memory", "verdict", "token/s each", "time", "GPU-hours", "money"):
        assert column in said
    assert "held-out rows of published/training.csv" in said
    assert "money: " in said
    assert "served on 1 x H100-80GB (export.gpu), fp8" in said
    assert "what would run is not known" in said  # the base is not on this machine
    assert main([*words, "--explain"]) == 0
    explained = capsys.readouterr().out
    assert "optimiser states: 8.03 GB = 8 B x parameters / ranks" in explained
    assert "(above)" in explained
    assert not list(tmp_path.iterdir())


def test_the_verb_speaks_to_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "llama-8b", "--runs", str(tmp_path), "--gpus", "h100", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    train = next(each for each in said["needs"] if each["stage"] == "train")
    assert (train["verdict"], train["feasible"]) == ("does not fit", False)
    assert train["alternatives"][0]["set"].startswith("train.")
    assert math.isclose(train["memory_bytes"], train["quantities"][0]["value"])
    assert said["deploy"]["verdict"] == "fits"
    assert "meta-llama" in said["unknown"]


@pytest.mark.parametrize(
    ("gpus", "told"),
    [
        ("0xH100-80GB", "must be from 1"),
        ("8xH101", "H101"),
        ("-2xH100", "H100"),
        ("8x", "8x"),
        ("8xV100-32GB", "does not"),
    ],
)
def test_gpus_that_cannot_be_are_told_in_a_line(
    gpus: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "llama-8b", "--runs", str(tmp_path), f"--gpus={gpus}"]
    assert main(words) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ")
    assert told in error
    assert len(error.splitlines()) == 1


def test_without_gpus_named_a_missing_base_is_still_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "llama-8b", "--runs", str(tmp_path)]) == 2
    told = capsys.readouterr()
    assert "on 8 x H100-80GB" in told.out
    assert "is not on this machine" in told.err


def test_calibration_is_refused_where_steps_run_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", "llama-tiny", "--runs", str(tmp_path), "--site", "kubernetes", "--calibrate"]
    assert main(words) == 2
    assert "--calibrate times steps on this machine" in capsys.readouterr().err


def test_what_a_calibration_says_on_the_way_does_not_come_between_the_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verb.inputs, "check_inputs", lambda loaded: None)
    monkeypatch.setattr(verb.Chain, "plan", lambda chain, target=None: [])
    monkeypatch.setattr(verb, "calibrate", lambda chain, display: display.note("train", "two steps"))
    assert main(["plan", "llama-tiny", "--runs", str(tmp_path), "--calibrate", "--json"]) == 0
    told = capsys.readouterr()
    assert {each["stage"] for each in json.loads(told.out)["needs"]} == {"pretrain", "train", "align"}
    assert "two steps" in told.err


def test_everything_of_a_need_is_plain_json() -> None:
    found = plan("llama-8b", "H100-80GB")
    assert json.loads(json.dumps(plain(found)))["layout_fields"]["gpus"] == 1
