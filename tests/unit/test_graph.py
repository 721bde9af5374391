"""The stages as data: order, parents and what a recipe may leave out."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline import graph, schema
from pipeline.errors import UserError
from pipeline.runner.provenance import source_digest, source_files
from pipeline.toolchains import NAMES


def names(steps: tuple[graph.Step, ...]) -> list[str]:
    return [step.name for step in steps]


def test_every_stage_of_the_schema_is_declared_and_reads_real_sections() -> None:
    assert names(graph.resolve(schema.ALL_STAGES, False)) == schema.ALL_STAGES
    sections = schema.hints(schema.Recipe)
    for stage in graph.STAGES:
        assert {section.split(".")[0] for section in stage.sections} <= set(sections)
        assert stage.produces


def test_parents_come_before_children() -> None:
    seen: set[str] = set()
    for step in graph.resolve(schema.ALL_STAGES, False):
        assert {parent for _, parent in step.parents} <= seen
        seen.add(step.name)


def test_a_base_model_takes_the_place_of_pretraining() -> None:
    steps = graph.resolve(schema.ALL_STAGES, True)
    assert "pretrain" not in names(steps)
    train = next(step for step in steps if step.name == "train")
    assert train.parents == (("data", "curate"),)


def test_an_engine_brings_its_toolchain_and_module() -> None:
    engines = {"pretrain": "automodel", "train": "nemo", "align": "aligner"}
    found = {step.name: step.stage for step in graph.resolve(schema.ALL_STAGES, False, engines)}
    assert [found[name].toolchain for name in graph.MODELS] == ["core", "nemo", "nemo"]
    assert found["train"].source == "pipeline.engines.nemo.step"
    assert found["align"].source == "pipeline.engines.aligner.step"
    assert found["pretrain"] == graph.BY_NAME["pretrain"]
    # What is offered as a setting is what the graph knows.
    for name in graph.MODELS:
        declared = {each.name: each for each in dataclasses.fields(getattr(schema, name.capitalize()))}
        others = {engine for engine, _, _ in graph.BY_NAME[name].engines}
        assert set(declared["engine"].metadata["choices"]) == {"automodel", *others}
    assert {toolchain for stage in graph.STAGES for _, toolchain, _ in stage.engines} <= set(NAMES)


def test_an_engine_s_code_is_what_its_record_digests() -> None:
    train = graph.BY_NAME["train"]
    assert source_digest(train.by("nemo")) != source_digest(train)
    assert not any("engines/nemo" in str(file) for file in source_files(train.source))


def test_alignment_may_be_left_out() -> None:
    steps = graph.resolve(["curate", "pretrain", "train", "export"], False)
    assert dict(steps[-1].parents) == {"data": "curate", "pretrain": "pretrain", "train": "train"}


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (["pretrain"], "needs what curate makes"),
        (["curate", "train"], "needs a model"),
        (["deploy"], "export"),
    ],
)
def test_a_stage_without_its_input_is_refused(stages: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        graph.resolve(stages, False)


def test_ancestors_bring_the_gate_along() -> None:
    steps = graph.resolve(schema.ALL_STAGES, False)
    assert names(graph.ancestors(steps, "train")) == ["curate", "pretrain", "train"]
    assert "evaluate" in names(graph.ancestors(steps, "export"))


def test_a_reward_model_and_sampling_are_on_request() -> None:
    assert "reward" not in schema.Recipe().stages
    assert "sample" not in schema.Recipe().stages
    assert [stage for stage in schema.ALL_STAGES if stage in schema.Recipe().stages] == schema.Recipe().stages


def test_a_step_rests_only_on_what_its_settings_use() -> None:
    recipe = schema.Recipe()

    def parents(name: str) -> dict[str, str]:
        steps = graph.resolve(schema.ALL_STAGES, False, unused=graph.unused_inputs(recipe))
        return dict(next(step for step in steps if step.name == name).parents)

    assert "pairs" not in parents("align")
    assert parents("sample")["reward"] == "reward"
    recipe.align.pairs, recipe.sample.scorer = "sample", "house-style"
    assert parents("align")["pairs"] == "sample"
    assert "reward" not in parents("sample")
