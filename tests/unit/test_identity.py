"""Identity: what counts, what never counts, and the canonical form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import graph, schema
from pipeline.layers import leaves
from pipeline.recipe import load
from pipeline.runner.identity import canonical, differences, digest_of, parts_of
from pipeline.toolchains import ROOT

settings.register_profile("patient", deadline=None)  # a busy machine is no failure
settings.load_profile("patient")
STEPS = {step.name: step for step in graph.resolve(schema.ALL_STAGES, False)}
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def parts(recipe: schema.Recipe, stage: str = "train", **inputs: str) -> dict[str, Any]:
    return parts_of(STEPS[stage], recipe, {"data": "d1", "pretrain": "p1"}, inputs)


@given(st.dictionaries(st.text(), plain, max_size=5))
def test_key_order_never_counts(value: dict[str, Any]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


@given(plain)
def test_canonical_form_carries_the_value_exactly(value: Any) -> None:
    assert json.loads(canonical(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1: 2}, {"a": {1, 2}}, (1,), b"x", Path("a")])
def test_what_has_no_exact_form_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        canonical(value)


def test_identity_is_the_same_in_every_process() -> None:
    code = (
        "from pipeline import graph, schema; from pipeline.runner.identity import digest_of, parts_of;"
        "s = graph.resolve(schema.ALL_STAGES, False)[2];"
        "print(digest_of(parts_of(s, schema.Recipe(), {'data': 'd1', 'pretrain': 'p1'}, {})))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout.strip()
        for seed in ("0", "1", "17")
    }
    assert seen == {digest_of(parts(schema.Recipe())).encode()}


# Paths: the content of what they lead to counts instead.
PATHS = {
    "model.base",
    "curate.instructions",
    "curate.preferences",
    "curate.language.model",
    "curate.scored.path",
    "curate.semantic_duplicates.model",
}
LEAVES = [
    (path, metadata)
    for path, _, metadata in leaves(schema.Recipe(curate=schema.Curate(sources=[schema.Source()])))
    if "." in path
]


def read_by(step: graph.Step, path: str) -> bool:
    """Whether a stage declares that it reads the setting."""
    return any(path == section or path.startswith(f"{section}.") for section in step.stage.sections)


def changed_value(value: Any, metadata: Any) -> Any:
    """Another value of the same kind."""
    if metadata.get("choices"):
        return next((choice for choice in metadata["choices"] if choice != value), f"{value}x")
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "more"]
    if isinstance(value, dict):
        return {**value, "more": {"value": 1}}
    return f"{value or ''}x"


def assign(recipe: schema.Recipe, path: str, change: Any) -> None:
    *above, name = path.split(".")
    section: Any = recipe
    for part in above:
        section = section[int(part)] if part.isdigit() else getattr(section, part)
    setattr(section, name, change(getattr(section, name)))


def one_source() -> schema.Recipe:
    return schema.Recipe(curate=schema.Curate(sources=[schema.Source()]))


@pytest.mark.parametrize(("path", "metadata"), LEAVES, ids=[path for path, _ in LEAVES])
def test_a_setting_changes_exactly_the_stages_that_read_it(path: str, metadata: Any) -> None:
    counts = metadata["identity"] and path not in PATHS and not path.endswith(".path")
    for stage, step in STEPS.items():
        recipe = one_source()
        assign(recipe, path, lambda value: changed_value(value, metadata))
        before, after = digest_of(parts(one_source(), stage)), digest_of(parts(recipe, stage))
        assert (before != after) == (counts and read_by(step, path)), stage


def test_the_walk_covers_every_kind_of_setting() -> None:
    values = {path: value for path, value, _ in leaves(one_source())}
    assert {type(values[path]) for path, _ in LEAVES} >= {int, float, bool, str, list, type(None)}
    assert sum(metadata["identity"] for _, metadata in LEAVES) > 80


@given(st.randoms(use_true_random=False), st.integers(0, 3))
def test_order_and_formatting_in_a_recipe_never_count(chance: Any, layer: int) -> None:
    spelled = {
        "lr": ["1e-3", "0.001", "1.0e-3", "0.0010", "10.0e-4", "1.0E-3", "+1e-3"],
        "max_steps": ["200", "+200", "2_00"],
        "weight_decay": ["0", "0.0", "0e0", "0.00"],
        "peft": ["lora", "'lora'", '"lora"'],
        "beta2": ["0.95", "95e-2", ".95"],
    }
    lines = [f"  {key}: {chance.choice(ways)}" for key, ways in spelled.items()]
    chance.shuffle(lines)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "r.yaml"
        inline = lines[: len(lines) - layer]
        words = " ".join(f"train.{line.strip().replace(': ', '=')}" for line in lines[len(lines) - layer :])
        file.write_text(
            "description: words\ntrain:\n"
            + "\n".join(inline)
            + "\nstages: [curate, pretrain, train]\ncurate: {sources: [{kind: python-docs, packages: [numpy]}]}\n"
        )
        loaded = load(str(file), ROOT, words)
    expected = schema.Recipe()
    expected.train.peft = "lora"
    expected.train.lr, expected.train.max_steps, expected.train.beta2 = 0.001, 200, 0.95
    expected.train.weight_decay = 0.0
    assert parts(loaded.settings)["settings"]["train"] == parts(expected)["settings"]["train"]


@given(
    st.dictionaries(
        st.sampled_from(
            ["HOSTNAME", "USER", "HOME", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TZ", "LANG"]
        ),
        st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=8),
    ),
    st.integers(0, 64),
    st.integers(1024, 60000),
    st.sampled_from(["a", "b/c"]),
)
def test_machine_facts_never_count(facts: dict[str, str], threads: int, port: int, place: str) -> None:
    recipe = one_source()
    recipe.site.threads = recipe.curate.workers = threads
    recipe.site.name, recipe.site.lease_s = place, float(threads + 1)
    recipe.deploy.http_port, recipe.deploy.host = port, "0.0.0.0"
    recipe.curate.sources[0].path = place
    recipe.train.checkpoint_every = recipe.evaluate.batch_size = threads + 1
    with pytest.MonkeyPatch.context() as patch:
        for name, value in facts.items():
            patch.setenv(name, value)
        for stage in STEPS:
            assert digest_of(parts(recipe, stage)) == digest_of(parts(one_source(), stage))


@given(plain, plain)
def test_different_values_have_different_forms(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (canonical(a) == canonical(b)) == same


def test_other_sections_site_and_ports_never_count() -> None:
    recipe = schema.Recipe()
    recipe.align.beta = 0.5
    recipe.site.threads = 7
    recipe.deploy.http_port = 9000
    recipe.curate.workers = 5
    assert digest_of(parts(recipe)) == digest_of(parts(schema.Recipe()))


def test_the_place_of_the_data_does_not_count_but_its_content_does() -> None:
    here, there = schema.Recipe(), schema.Recipe()
    here.curate.sources = [schema.Source(kind="jsonl", path="a/docs.jsonl")]
    there.curate.sources = [schema.Source(kind="jsonl", path="b/docs.jsonl")]
    same = {"sources.0/docs.jsonl": "x"}
    assert parts(here, "curate", **same) == parts(there, "curate", **same)
    assert parts(here, "curate", **same) != parts(here, "curate", **{"sources.0/docs.jsonl": "y"})


def test_differences_are_told_field_by_field() -> None:
    old, new = schema.Recipe(), schema.Recipe()
    new.train.lr = 1e-4
    new.train.lora.rank = 4
    found = differences(parts(new, docs="2", more="1"), parts(old, docs="1"))
    assert found == [
        "train.lora.rank: 16 -> 4",
        "train.lr: 0.001 -> 0.0001",
        "input docs changed",
        "input more is new",
    ]


def test_a_mapping_that_is_filled_or_emptied_is_told_key_by_key() -> None:
    old, new = schema.Recipe(), schema.Recipe()
    new.export.tolerance = {"kl": 0.5}
    assert differences(parts(new, "export"), parts(old, "export")) == ["export.tolerance.kl: None -> 0.5"]
    assert differences(parts(old, "export"), parts(new, "export")) == ["export.tolerance.kl: 0.5 -> None"]
