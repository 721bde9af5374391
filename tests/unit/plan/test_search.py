"""What does not fit comes with what does, as settings that can be pasted and are feasible themselves."""

from __future__ import annotations

import dataclasses
import time

import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.plan import hardware, shapes
from pipeline.plan.training import memory, published, search, verdict
from pipeline.plan.training.layout import Layout, Work
from pipeline.plan.training.settings import engine_of, paste, read
from pipeline.toolchains import ROOT

H100 = hardware.gpu("H100-80GB")
LLAMA = published.models()
SFT = Work("sft", length=4096)
IMPOSSIBLE = {
    "llama3-70b": Layout(8, tensor=8, sequence_parallel=True, global_batch=128),
    "llama3-8b": Layout(1, global_batch=128),
    "llama3.1-405b": Layout(64, tensor=8, pipeline=8, virtual=8, sequence_parallel=True, global_batch=128),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_configuration_comes_with_feasible_ones_quickest_first(name: str) -> None:
    layout = IMPOSSIBLE[name]
    began = time.process_time()
    found = search.nearest(LLAMA[name], layout, SFT, H100)
    assert time.process_time() - began < 2.0  # 0.1 to 0.4 s on an idle core
    assert found
    for each in found:
        assert each.layout.fault(LLAMA[name], each.work) is None
        need = memory.need(LLAMA[name], each.layout, each.work)
        assert verdict.judge(need.total, H100).feasible
        assert each.layout.global_batch == layout.global_batch
        assert each.changes
    times = [each.time.value for each in found]
    assert times == sorted(times)
    ways = [(each.layout.gpus, each.work.peft) for each in found]
    assert (layout.gpus, "lora") in ways  # less work on the same GPUs
    assert any(gpus > layout.gpus and peft == "none" for gpus, peft in ways)  # the same work on more


def test_fine_tuning_70b_wants_the_32_gpus_of_the_published_recipe() -> None:
    found = search.nearest(LLAMA["llama3-70b"], IMPOSSIBLE["llama3-70b"], SFT, H100)
    comfortable = [each for each in found if each.work.peft == "none" and each.verdict.word == verdict.FITS]
    assert {each.layout.gpus for each in comfortable} == {32}


def test_a_layout_that_fits_on_its_gpus_is_looked_for_there_first() -> None:
    """Too large a micro batch needs no more GPUs, and no adapters."""
    layout = Layout(8, sharding="zero3", micro_batch=16, global_batch=128)
    found = search.nearest(LLAMA["llama3-8b"], layout, SFT, H100)
    assert found
    assert all(each.layout.gpus == 8 and each.work == SFT for each in found)


def test_where_nothing_fits_nothing_is_found() -> None:
    t4 = hardware.gpu("T4")
    work = dataclasses.replace(SFT, precision="fp32")
    assert search.nearest(LLAMA["llama3.1-405b"], Layout(1, global_batch=1), work, t4, most_gpus=1) == []


def test_the_bound_on_gpus_holds() -> None:
    layout = IMPOSSIBLE["llama3-70b"]
    found = search.nearest(LLAMA["llama3-70b"], layout, SFT, H100, most_gpus=16)
    assert max(each.layout.gpus for each in found) == 16


def test_no_fit_is_invented_for_expert_models_either() -> None:
    layout = Layout(8, tensor=8, sequence_parallel=True, expert=8, global_batch=128)
    for each in search.nearest(LLAMA["qwen3-30b-a3b"], layout, SFT, H100):
        assert verdict.judge(each.memory, H100).feasible


def recipe_of(settings: str) -> recipe.LoadedRecipe:
    return recipe.load("llama-70b", ROOT, settings, "local")


@pytest.mark.parametrize("section", ["train", "align"])
def test_what_is_found_for_our_own_engine_can_be_pasted_and_is_what_was_meant(section: str) -> None:
    base = f"{section}.peft=none {section}.precision=bf16 {section}.micro_batch_size=4 {section}.global_batch_size=128"
    settings = recipe_of(base).settings
    shape = shapes.of_recipe(settings.model)
    was = read(section, getattr(settings, section), settings.model.context, 8)
    found = search.nearest(shape, *was, H100, engine_name="automodel")
    assert found
    for each in found:
        words = paste(section, was, (each.layout, each.work), "automodel", H100.gpus_per_node)
        again = recipe_of(f"{base} {words}").settings  # all of the recipe's own rules hold
        gpus = max(8, again.launch.gpus * again.launch.nodes)
        layout, work = read(section, getattr(again, section), again.model.context, gpus)
        assert layout == each.layout
        assert (work.peft, work.precision, work.reference) == (
            each.work.peft,
            each.work.precision,
            each.work.reference,
        )


def test_our_own_engine_is_not_asked_for_what_it_cannot_do() -> None:
    work = dataclasses.replace(SFT, states="automodel", kernels="eager")
    layout = Layout(8, global_batch=128, micro_batch=8)
    for each in search.nearest(LLAMA["llama3-70b"], layout, work, H100, engine_name="automodel"):
        assert each.layout.pipeline == each.layout.virtual == each.layout.expert == 1
        assert each.layout.sharding in ("none", "zero3")
        assert each.layout.sharding == "zero3" or each.layout.tensor == each.layout.context == 1
        assert each.work.peft != "qlora" or each.layout.tensor == 1


def test_settings_are_pasted_by_their_names_and_only_where_they_differ() -> None:
    was = (Layout(8, global_batch=128, micro_batch=4), SFT)
    now = (
        Layout(16, tensor=2, sequence_parallel=True, sharding="zero3", global_batch=128, recompute="full"),
        dataclasses.replace(SFT, peft="lora"),
    )
    assert paste("train", was, now, "automodel") == (
        "train.peft=lora train.micro_batch_size=1 train.parallel.strategy=fsdp2 train.parallel.tensor=2 "
        "train.parallel.sequence=true train.parallel.recompute=full launch.nodes=2 launch.gpus=8"
    )
    assert "launch" not in paste("train", was, now, "automodel", gpus=False)
    assert paste("train", was, was, "automodel") == ""


def test_nemos_layouts_are_pasted_by_its_own_names() -> None:
    loaded = recipe_of("train.engine=nemo train.peft=none train.precision=bf16 train.nemo.tensor=8").settings
    assert engine_of(loaded.train) == "nemo"
    was = read("train", loaded.train, 4096, 8)
    assert (was[1].states, was[0].tensor, was[0].gpus) == ("megatron", 8, 8)
    found = search.nearest(LLAMA["llama3-70b"], *was, H100, engine_name="nemo")
    assert found
    words = {paste("train", was, (each.layout, each.work), "nemo") for each in found}
    base = "train.engine=nemo train.peft=none train.precision=bf16 train.nemo.tensor=8"
    again = [recipe_of(f"{base} {each}").settings for each in words]
    assert any(each.train.nemo.nodes > 1 or each.train.peft == "lora" for each in again)


def test_thresholds_are_nine_tenths_and_all() -> None:
    assert [verdict.word(share) for share in (0.5, 0.9, 0.901, 1.0, 1.001)] == [
        "fits",
        "fits",
        "tight",
        "tight",
        "does not fit",
    ]
    assert verdict.room(H100) == pytest.approx(81_559 * 2**20, rel=0.003)  # what nvidia-smi reports
    assert verdict.room(hardware.gpu("L4")) == pytest.approx(23_034 * 2**20, rel=0.01)


def test_nonsense_is_one_clear_line() -> None:
    shape, layout = LLAMA["llama3-8b"], Layout(8, global_batch=128)
    with pytest.raises(UserError, match="engine = 'steam': choose one of automodel, nemo, any"):
        search.nearest(shape, layout, SFT, H100, engine_name="steam")
    with pytest.raises(UserError, match="gpus = 0"):
        search.nearest(shape, Layout(0), SFT, H100)
    with pytest.raises(UserError, match="at most -1 GPUs"):
        search.nearest(shape, layout, SFT, H100, most_gpus=-1)
    with pytest.raises(UserError, match="there is no GPU 'abacus'"):
        hardware.gpu("abacus")
    with pytest.raises(UserError, match="does not multiply in bf16"):
        search.nearest(LLAMA["qwen2.5-7b"], layout, Work(peft="lora", kind="sft"), hardware.gpu("V100-32GB"))
