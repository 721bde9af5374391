"""What a recipe needs: parameters exactly, memory by its formula, and refusals that say what fits."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from pipeline import recipe, schema
from pipeline.errors import UserError
from pipeline.plan.memory import GB, adapter_parameters, need, parameters, reading
from pipeline.plan.site import Machine, ask_for_gpus, check
from pipeline.toolchains import ROOT

NONE = Machine(0, 0.0, 25 * GB)
ONE_H100 = Machine(1, 80 * 2**30, 500 * GB)


def load(name: str, settings: str = "") -> recipe.LoadedRecipe:
    return recipe.load(name, ROOT, settings, "local")


@pytest.mark.parametrize(
    ("name", "count"),  # of transformers' LlamaForCausalLM of the published configurations
    [("1b", 1_235_814_400), ("8b", 8_030_261_248), ("70b", 70_553_706_496), ("405b", 405_853_388_800)],
)
def test_parameters_are_those_of_the_published_models(name: str, count: int) -> None:
    assert parameters(load(f"llama-{name}").settings.model) == count


def test_adapters_of_rank_8_on_8b_are_as_peft_counts_them() -> None:
    # Seven projections: 2 x (4096 + 4096), 2 x (4096 + 1024), 3 x (4096 + 14336), times 8 x 32 layers.
    assert adapter_parameters(load("llama-8b").settings.model, 8) == 20_971_520


def test_what_makes_a_step_smaller_makes_the_estimate_smaller() -> None:
    """The sizes themselves are held to real tensors in tests/stages/core/test_memory_estimate.py."""
    model = load("llama-8b").settings.model
    sharded = need(model, schema.Train(parallel=schema.Parallel(strategy="fsdp2")), 8)
    assert 8 * sharded.weights == need(model, schema.Train(), 1).weights
    copied, plain = need(model, schema.Align(), 1), need(model, schema.Align(exact_kl=False), 1)
    assert (copied.reference, plain.reference) == (copied.weights, 0)
    totals = [
        need(model, settings, 8).total
        for settings in (
            schema.Train(),
            schema.Train(peft="lora"),
            schema.Train(peft="lora", precision="bf16-weights"),
            schema.Train(peft="lora", precision="bf16-weights", micro_batch_size=1),
            schema.Train(
                peft="lora",
                precision="bf16-weights",
                micro_batch_size=1,
                parallel=schema.Parallel(recompute="full"),
            ),
            schema.Train(
                peft="lora",
                precision="bf16-weights",
                micro_batch_size=1,
                parallel=schema.Parallel(strategy="fsdp2", recompute="full"),
            ),
        )
    ]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == len(totals)


def test_a_reward_model_has_two_sequences_a_pair_and_one_output() -> None:
    model = load("llama-tiny").settings.model
    small, large = (dataclasses.replace(model, vocab_size=size) for size in (1_000, 9_000))
    ours = [need(each, schema.Reward(micro_batch_size=8), 1).activations for each in (small, large)]
    theirs = [need(each, schema.Train(micro_batch_size=16), 1).activations for each in (small, large)]
    assert ours[0] == ours[1] < theirs[0] < theirs[1]
    logits_of_one = (theirs[1] - theirs[0]) / 8_000
    assert ours[0] == pytest.approx(theirs[0] - 1_000 * logits_of_one)


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
    model = load("llama-70b").settings.model
    spread, here = (reading(model, "export", size) for size in (640 * GB, 80 * GB))
    # What has no room on the GPUs stays in main memory.
    assert spread.gpus + spread.main == here.gpus + here.main
    assert here.gpus == 80 * GB
    assert spread.gpus == spread.main == pytest.approx(4.4 * parameters(model))


def test_too_little_memory_is_refused_with_the_setting_that_fits() -> None:
    with pytest.raises(UserError) as refused:
        check(load("llama-8b"), ["train"], lambda _: ONE_H100)
    said = str(refused.value)
    assert "1 GPU of 86 GB" in said
    assert 'What fits here: SET="train.peft=lora' in said
    setting = said.rsplit('SET="', 1)[1].split('"')[0]
    check(load("llama-8b", setting), ["train"], lambda _: ONE_H100)


def test_a_base_is_counted_by_its_own_shape(tmp_path: Path) -> None:
    large = {
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    }
    (tmp_path / "config.json").write_text(
        json.dumps({**large, "intermediate_size": 28672, "vocab_size": 128256})
    )
    with pytest.raises(UserError, match="for each of 1 processes"):
        check(load("llama-tiny", f"model.base={tmp_path}"), ["train"], lambda _: NONE)


def test_a_layout_that_does_not_divide_is_refused_before_anything_starts() -> None:
    with pytest.raises(UserError, match="is not 3 data-parallel processes"):
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
    with pytest.raises(UserError, match="for each of 1 processes"):
        check(
            load("llama-tiny", "model.hidden_size=8192 model.layers=40 model.heads=64 model.kv_heads=8"),
            ["pretrain"],
            lambda _: NONE,
        )
