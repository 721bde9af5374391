"""The recipes of a sweep load, spend their budgets, share their data, and are collected into runs.csv."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipeline import graph, recipe, schema
from pipeline.plan.scaling import commands, sizes, sweep
from pipeline.plan.scaling.corpus import corpus_of
from pipeline.plan.shapes import of_recipe
from pipeline.plan.training.eager import parameters
from pipeline.runner.identity import digest_of, parts_of
from pipeline.runner.store import manifest_digest, output_digest
from pipeline.toolchains import ROOT
from tests.unit.plan.scale import scale

BUDGETS = "1e12,2e12,4e12"
TOKENS, DOCUMENTS, VALIDATION = 4_059_565, 41_352, 1_469  # as curation of llama-tiny counted, 2026-11-21


def step(name: str) -> graph.Step:
    return next(each for each in graph.resolve(["curate", "pretrain"], False) if each.name == name)


def publish(runs: Path, name: str, stage: str, settings: Any, metrics: dict[str, Any], **more: Any) -> None:
    """An artifact as the store leaves one, without files."""
    parts = parts_of(step(stage), settings, more.pop("digests", {}), {})
    identity = digest_of(parts)
    folder = runs / name / stage / identity[:12]
    folder.mkdir(parents=True)
    manifest = {
        "identity": identity,
        "stage": stage,
        "parts": parts,
        "metrics": metrics,
        "files": {},
        "output_digest": output_digest({}),
        "parents": {},
        **more,
    }
    whole = {**manifest, "manifest_digest": manifest_digest(manifest)}
    (folder / "manifest.json").write_text(json.dumps(whole), encoding="utf-8")
    latest = folder.parent / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(identity[:12])


def curated(runs: Path, name: str, settings: Any) -> None:
    counts = {"train": DOCUMENTS, "validation": VALIDATION, "test": 3294}
    metrics = {"pretrain_train_tokens": TOKENS, "sizes": {"pretrain": counts}}
    publish(runs, name, "curate", settings, metrics)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    found = tmp_path / "runs"
    curated(found, "llama-tiny", recipe.load("llama-tiny", ROOT).settings)
    return found


def write(tmp_path: Path, runs: Path, *more: str, budgets: str = BUDGETS) -> list[recipe.LoadedRecipe]:
    """Write a sweep over llama-tiny and load all of its recipes."""
    folder = tmp_path / "sweep"
    arguments = ("--budgets", budgets, "--tokens-per-parameter", "3", "--runs", str(runs))
    assert scale("sweep", "llama-tiny", *arguments, "--output", str(folder), *more) == 0
    return [recipe.load(str(file), ROOT) for file in sorted(folder.glob("*/*.yaml"))]


def test_every_recipe_loads_and_spends_its_budget(tmp_path: Path, runs: Path) -> None:
    loaded = write(tmp_path, runs)
    assert len(loaded) == 15
    listing = {
        each["folder"]: each for each in json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]
    }
    mean = (TOKENS + DOCUMENTS) / DOCUMENTS
    for file, each in zip(sorted((tmp_path / "sweep").glob("*/*.yaml")), loaded, strict=True):
        settings = each.settings
        spent = 6 * parameters(settings.model) * settings.pretrain.max_steps * 16 * mean
        assert spent == pytest.approx(listing[file.parent.name]["budget"], rel=0.01)
        assert settings.stages == ["curate", "pretrain"]
        assert settings.pretrain.warmup_steps <= max(1, settings.pretrain.max_steps // 10)
        assert settings.pretrain.validation_batches * 16 >= VALIDATION  # the whole split
        assert settings.model.hidden_size % settings.model.heads == 0
        assert settings.model.hidden_size // settings.model.heads % 2 == 0
        assert settings.model.heads == 2 * settings.model.kv_heads


def test_recipes_share_their_curation_and_nothing_else(tmp_path: Path, runs: Path) -> None:
    """One name, so one folder of artifacts; one curation in it; a pre-training each."""
    loaded = write(tmp_path, runs)
    base = recipe.load("llama-tiny", ROOT).settings
    assert {each.name for each in loaded} == {"llama-tiny-sweep"}
    curations = {digest_of(parts_of(step("curate"), each.settings, {}, {})) for each in loaded}
    assert curations == {digest_of(parts_of(step("curate"), base, {}, {}))}
    trainings = {digest_of(parts_of(step("pretrain"), each.settings, {}, {})) for each in loaded}
    assert len(trainings) == len(loaded)


def test_sizes_are_bracketed_about_the_expected_optimum(tmp_path: Path, runs: Path) -> None:
    write(tmp_path, runs)
    points = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]
    for budget in (1e12, 2e12, 4e12):
        found = sorted(each["parameters"] for each in points if each["budget"] == budget)
        centre = sweep.optimum(budget, 3.0)
        assert found[1] < centre < found[-2]
        assert found[-1] / found[0] > 6


@pytest.mark.parametrize("wanted", [1e5, 3e5, 1e6, 3e6, 3e7, 3e8])
def test_shapes_are_near_the_size_in_the_base_s_proportions(wanted: float) -> None:
    base = recipe.load("llama-tiny", ROOT).settings.model
    made = sizes.shaped(base, wanted)
    assert parameters(made) == pytest.approx(wanted, rel=0.12)
    assert made.intermediate_size / made.hidden_size == pytest.approx(8 / 3, rel=0.2)
    if made.layers > 2:
        assert 32 <= made.hidden_size / made.layers <= 128  # the base: 64
    assert (made.vocab_size, made.context) == (base.vocab_size, base.context)


def test_narrower_models_learn_faster_and_begin_wider() -> None:
    base = schema.Model(hidden_size=192, layers=3, heads=6, kv_heads=3, initializer_range=0.04)
    narrow = sizes.shaped(base, 3e5)
    ratio = (192 / narrow.hidden_size) ** 0.5
    assert sizes.rate(base, narrow, 4e-3) == pytest.approx(4e-3 * ratio, rel=0.03)
    assert narrow.initializer_range == pytest.approx(0.04 * ratio, rel=0.03)
    assert sizes.rate(base, base, 4e-3) == 4e-3


def test_an_input_embedding_of_its_own_costs_no_flops() -> None:
    tied = schema.Model(tie_embeddings=True)
    untied = schema.Model(tie_embeddings=False)
    assert sizes.computing(tied) == parameters(tied) == sizes.computing(untied)


def test_repeats_are_counted_and_warned_of(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--budgets", "3e13", "--sizes", "1e5,3e5,1e6", "--runs", str(runs))
    assert scale("sweep", "llama-tiny", *arguments, "--output", str(tmp_path / "s"), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    epochs = [each["epochs"] for each in found["points"]]
    assert epochs[0] == pytest.approx(found["points"][0]["tokens"] / (TOKENS + DOCUMENTS))
    warned = [each for each in found["warnings"] if "Muennighoff" in each]
    assert len(warned) == sum(each > 4 for each in epochs) > 0


def test_without_a_curation_sequences_count_as_full_and_this_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--budgets", "1e13", "--sizes", "3e5,1e6,3e6", "--runs", str(tmp_path / "none"))
    assert scale("sweep", "llama-tiny", *arguments, "--output", str(tmp_path / "s")) == 0
    said = capsys.readouterr().out
    assert "curation of llama-tiny has not run" in said
    assert "counts 256.0 tokens (model.context)" in said


def test_a_held_out_run_is_marked_and_told_apart(tmp_path: Path, runs: Path) -> None:
    write(tmp_path, runs, "--models", "3", "--held-out", "1.4e13", "--held-out-size", "1e6", budgets="1e12")
    points = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["points"]
    held = [each for each in points if each["held_out"]]
    assert [each["budget"] for each in held] == [1.4e13]
    assert held[0]["folder"].startswith("held-out-")
    assert held[0]["parameters"] == pytest.approx(1e6, rel=0.1)


def test_a_sweep_written_again_leaves_no_recipe_of_the_one_before(tmp_path: Path, runs: Path) -> None:
    write(tmp_path, runs, "--models", "3", budgets="1e12")
    loaded = write(tmp_path, runs, "--models", "3", "--spacing", "2.5", budgets="2e12")
    assert len(loaded) == 3
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    arguments = ("--budgets", "1e13", "--sizes", "3e5,1e6,3e6", "--output", str(tmp_path / "other"))
    assert scale("sweep", "llama-tiny", *arguments) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("llama-tiny", "--budgets=-1e12"), "--budgets -1e12: expected a positive number"),
        (("llama-tiny", "--budgets", "1e300"), "--budgets 1e300: training compute must be from 1 to 1e+36"),
        (
            ("llama-tiny", "--budgets", "1e13", "--held-out", "1e99"),
            "--held-out 1e99: training compute must be",
        ),
        (("llama-tiny", "--budgets", "1e12,1e12"), "the same number is there twice"),
        (("llama-tiny", "--budgets", "1e13", "--sizes", "1e3"), "no model with a vocabulary of 4,096"),
        (("llama-tiny", "--budgets", "1e9", "--sizes", "1e6"), "less than two steps"),
        (("llama-tiny", "--budgets", "1e13", "--models", "2"), "--models must be 3 or more"),
        (("llama-tiny", "--budgets", "1e13", "--tokens-per-sequence", "300"), "more than model.context"),
        (("llama-tiny", "--budgets", "1e13", "--held-out-size", "1e6"), "--held-out-size needs --held-out"),
        (("llama-8b", "--budgets", "1e20"), "llama-8b does not pre-train from scratch"),
        (("llama-tini", "--budgets", "1e13"), "there is no recipe 'llama-tini'"),
    ],
)
def test_nonsense_is_refused_before_anything_is_written(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "sweep"
    arguments = (*arguments, "--runs", str(tmp_path / "runs"), "--output", str(output))
    assert scale("sweep", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not output.exists()


def test_a_folder_that_cannot_be_written_is_one_line(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--budgets", "1e12", "--tokens-per-parameter", "3", "--runs", str(runs))
    assert scale("sweep", "llama-tiny", *arguments, "--output", "/proc/x") == 2
    error = capsys.readouterr().err
    assert "--output /proc/x: cannot be written" in error
    assert error.count("\n") == 1


def test_what_was_measured_is_collected_by_settings(
    tmp_path: Path, runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = write(tmp_path, runs, "--models", "3", "--held-out", "1.4e13", budgets="1e12,4e12")
    name, folder = "llama-tiny-sweep", tmp_path / "sweep"
    assert scale("collect", str(folder), "--runs", str(runs)) == 2
    assert "none of the 7 recipes" in capsys.readouterr().err
    curated(runs, name, loaded[0].settings)
    data = {"data": {"identity": digest_of(parts_of(step("curate"), loaded[0].settings, {}, {}))}}
    for place, each in enumerate(loaded[1:]):
        settings = each.settings
        seen = settings.pretrain.max_steps * 1590
        metrics = {
            "parameters": parameters(settings.model),
            "tokens": seen,
            "validation_loss": 5 - 0.05 * place,
        }
        publish(runs, name, "pretrain", settings, metrics, parents=data, digests={"data": "x"})
    assert scale("collect", str(folder), "--runs", str(runs)) == 0
    said = capsys.readouterr().out
    assert "6 of 7 runs" in said
    assert len(re.findall("not run yet", said)) == 1
    with (folder / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["held_out"] for row in rows].count("1") == 1
    for row in rows:
        flops = 6 * int(row["parameters"]) * int(row["tokens"])
        assert float(row["flops"]) == pytest.approx(flops, rel=1e-5)
        assert float(row["epochs"]) == pytest.approx(int(row["tokens"]) / (TOKENS + DOCUMENTS), rel=1e-3)
    assert scale("train", "--runs", str(folder / "runs.csv")) == 0  # what is written can be read


def test_a_folder_that_is_no_sweep_s_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale("collect", str(tmp_path)) == 2
    assert "there is no sweep.json" in capsys.readouterr().err


def test_tokens_of_a_sequence_are_at_most_the_context(tmp_path: Path) -> None:
    """Documents of 98 tokens and an end-of-text token under a context of 256, and of 64 that cuts them into windows."""
    for context, expected in ((256, (TOKENS + DOCUMENTS) / DOCUMENTS), (64, 64.0)):
        loaded = recipe.load("llama-tiny", ROOT, f"model.context={context} export.parity_tokens=8")
        curated(tmp_path / str(context), "llama-tiny", loaded.settings)
        found = corpus_of(loaded, tmp_path / str(context), None)
        assert found.tokens_per_sequence == pytest.approx(expected)
        assert found.tokens == TOKENS + DOCUMENTS
        assert found.warnings == ()
        assert found.validation_batches(16) == 92  # of 1,469 documents


def test_a_curation_of_other_settings_is_told(runs: Path) -> None:
    loaded = recipe.load("llama-tiny", ROOT, "model.vocab_size=1024")
    assert "other settings" in corpus_of(loaded, runs, None).warnings[0]


@pytest.mark.parametrize("name", ["llama-tiny", "llama-mini", "llama-8b", "llama-70b"])
def test_the_quick_count_of_parameters_is_that_of_the_shape(name: str) -> None:
    model = dataclasses.replace(recipe.load(name, ROOT).settings.model, base=None)
    assert parameters(model) == of_recipe(model).parameters


@pytest.mark.parametrize("line", re.findall(r"lifecycle scale (sweep .*)", commands.SWEEP))
def test_the_examples_of_the_help_work(line: str, tmp_path: Path, runs: Path) -> None:
    output = tmp_path / "sweep"
    assert scale(*line.split(), "--runs", str(runs), "--output", str(output)) == 0
    assert len(list(output.glob("held-out-*/llama-tiny-sweep.yaml"))) == 1
