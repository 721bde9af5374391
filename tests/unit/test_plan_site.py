"""Whether a site has what a recipe needs, and refusals that say what fits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.plan import hardware
from pipeline.plan.place import GB, Machine, ask_for_gpus
from pipeline.plan.reading import reading
from pipeline.plan.shapes import of_recipe
from pipeline.plan.site import check
from pipeline.toolchains import ROOT

NONE = Machine(0, 0.0, 25 * GB)
ONE_H100 = Machine(1, 80 * 2**30, 500 * GB)


def load(name: str, settings: str = "") -> recipe.LoadedRecipe:
    return recipe.load(name, ROOT, settings, "local")


def test_no_gpu_is_refused_with_what_can_be_done() -> None:
    with pytest.raises(UserError) as refused:
        check(load("llama-8b"), ["curate", "train"], lambda _: NONE)
    said = str(refused.value)
    assert "made for 8 GPUs of 80 GB, and there is no NVIDIA GPU and 25 GB of memory" in said
    assert "SITE=slurm" in said
    assert "RECIPE=llama-tiny" in said
    check(load("llama-8b"), ["curate"], lambda _: NONE)  # curation needs none


def test_a_model_that_is_only_read_has_to_fit_too() -> None:
    for stage, told in (
        ("evaluate", "holds an estimated 35 GB in main memory"),
        ("export", "estimated 71 GB"),
    ):
        with pytest.raises(
            UserError, match=rf"cannot run {stage} here: .*{told}.*there are 25 GB"
        ) as refused:
            check(load("llama-8b"), [stage], lambda _: NONE)
        assert "SITE=slurm" in str(refused.value)
        check(load("llama-1b"), [stage], lambda _: NONE)
    with pytest.raises(UserError, match="estimated 155 GB on its GPUs"):
        check(load("llama-70b"), ["evaluate"], lambda _: ONE_H100)
    model = of_recipe(load("llama-70b").settings.model)
    spread, here = (reading(model, "export", size) for size in (640 * GB, 80 * GB))
    # What has no room on the GPUs stays in main memory.
    assert spread.gpus + spread.main == here.gpus + here.main
    assert here.gpus == 80 * GB
    assert spread.gpus == spread.main == pytest.approx(4.4 * model.parameters)


def test_too_little_memory_is_refused_with_the_setting_that_fits() -> None:
    with pytest.raises(UserError) as refused:
        check(load("llama-8b"), ["train"], lambda _: ONE_H100)
    said = str(refused.value)
    assert "llama-8b: train does not fit: " in said
    assert "for each of 1 GPUs, which has 85.9 GB (" in said
    assert "optimiser states 64.2 GB" in said
    assert "What does, quickest first:" in said
    settings = [line.split('SET="')[1].split('"')[0] for line in said.splitlines() if '  SET="' in line]
    here = [each for each in settings if "launch." not in each]
    assert any("train.peft=lora" in each for each in here)
    for setting in here:
        check(load("llama-8b", setting), ["train"], lambda _: ONE_H100)


def test_a_refusal_can_be_overridden_with_a_reason_that_is_kept() -> None:
    with pytest.raises(UserError, match=r"plan\.override_reason="):
        check(load("llama-8b"), ["train"], lambda _: ONE_H100)
    reason = "plan.override_reason='\"half of it is swapped out\"'"
    kept = check(load("llama-8b", reason), ["train"], lambda _: ONE_H100)["train"]
    assert (kept["verdict"], kept["override_reason"]) == ("does not fit", "half of it is swapped out")
    fitting = check(load("llama-8b", f"{reason} train.peft=lora"), ["train"], lambda _: ONE_H100)["train"]
    assert (fitting["verdict"], fitting["override_reason"]) == ("fits", None)
    with pytest.raises(UserError, match=r"whole number of micro"):  # no reason makes this possible
        check(
            load("llama-8b", f"{reason} launch.processes=3"), ["train"], lambda _: Machine(3, 800 * GB, 0.0)
        )


def test_gpus_of_a_known_kind_are_told_with_times() -> None:
    h100 = hardware.gpu("h100")
    place = Machine(1, 80 * 2**30, 500 * GB, gpu=h100)
    with pytest.raises(UserError, match=r"SET=\"train.peft=lora[^\"]*\"  \(1xH100-80GB: .* (h|min|days)\)"):
        check(load("llama-8b"), ["train"], lambda _: place)


def test_a_base_is_counted_by_its_own_shape(tmp_path: Path) -> None:
    large = {
        "model_type": "llama",
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    (tmp_path / "config.json").write_text(
        json.dumps({**large, "intermediate_size": 28672, "vocab_size": 128256})
    )
    with pytest.raises(UserError, match="for each of 1 processes, which has 25 GB"):
        check(load("llama-tiny", f"model.base={tmp_path}"), ["train"], lambda _: NONE)


def test_a_layout_that_does_not_divide_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="is not 3 data-parallel ranks"):
        check(load("llama-8b", "launch.processes=3"), ["train"], lambda _: Machine(3, 800 * GB, 0.0))


def test_a_cluster_is_asked_for_the_recipes_gpus() -> None:
    loaded = recipe.load("llama-8b", ROOT, "", "slurm")
    machine = ask_for_gpus(loaded.settings)
    assert (machine("train").gpus, machine("train").nodes) == (8, 1)
    assert loaded.settings.site.slurm.stages["train"]["gpus_per_node"] == 8
    for stage in ("evaluate", "export"):
        assert machine(stage).gpus == loaded.settings.site.slurm.stages[stage]["gpus_per_node"] == 8
    assert "curate" not in loaded.settings.site.slurm.stages
    check(loaded, ["train", "align", "evaluate", "export"], machine)


def test_every_llama_recipe_fits_the_machine_in_its_header() -> None:
    for name in ("llama-1b", "llama-8b", "llama-70b", "llama-405b"):
        loaded = recipe.load(name, ROOT, "", "slurm")
        check(loaded, loaded.settings.stages, ask_for_gpus(loaded.settings))


@pytest.mark.parametrize("name", ["llama-70b", "llama-405b"])
def test_all_weights_of_the_large_fit_the_machines_in_the_header(name: str) -> None:
    header = (ROOT / "recipes" / f"{name}.yaml").read_text().split("description:")[0]
    (settings,) = re.findall(r'SET="(train.peft=none[^"]*)"', header)
    with pytest.raises(UserError, match=r"made for \d+ machines \(launch.nodes\).* 1 GPU of"):
        check(load(name, settings), ["train"], lambda _: ONE_H100)
    loaded = recipe.load(name, ROOT, settings, "slurm")
    machine = ask_for_gpus(loaded.settings)
    assert machine("train").nodes == loaded.settings.launch.nodes > 1
    check(loaded, ["train"], machine)


def test_machines_of_one_stage() -> None:
    loaded = recipe.load(
        "llama-8b", ROOT, "site.slurm.stages='{train: {nodes: 2, gpus_per_node: 4}}' launch.nodes=1", "slurm"
    )
    machine = ask_for_gpus(loaded.settings)
    assert (machine("train").gpus, machine("train").nodes) == (4, 2)
    assert (machine("align").gpus, machine("align").nodes) == (8, 1)


def test_a_stage_may_have_fewer_machines_and_nemo_asks_itself() -> None:
    settings = (
        "launch.nodes=2 site.slurm.stages='{align: {nodes: 1}}' train.engine=nemo train.micro_batch_size=1"
    )
    loaded = recipe.load("llama-8b", ROOT, settings, "slurm")
    machine = ask_for_gpus(loaded.settings)
    assert [machine(stage).nodes for stage in ("train", "reward", "align")] == [1, 2, 1]
    check(loaded, ["train", "align"], machine)


def test_the_tiny_recipes_fit_a_laptop() -> None:
    for name in ("llama-tiny", "llama-mini"):
        check(load(name), load(name).settings.stages, lambda _: Machine(0, 0.0, 8 * GB))


def test_a_model_too_large_for_main_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="for each of 1 processes, which has 25 GB"):
        check(
            load("llama-tiny", "model.hidden_size=8192 model.layers=40 model.heads=64 model.kv_heads=8"),
            ["pretrain"],
            lambda _: NONE,
        )
