"""Identity: what counts, what never counts, and the canonical form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import graph, schema
from pipeline.runner.identity import canonical, differences, digest_of, parts_of

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


def test_every_setting_that_bears_identity_changes_it_and_no_other_does() -> None:
    for section in ("pretrain", "train", "align", "evaluate", "export", "deploy", "curate"):
        stage = section
        before = digest_of(parts(schema.Recipe(), stage))
        for declared in fields(getattr(schema.Recipe(), section)):
            recipe = schema.Recipe()
            value = getattr(getattr(recipe, section), declared.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            setattr(getattr(recipe, section), declared.name, value + 1)
            changed = digest_of(parts(recipe, stage)) != before
            assert changed == declared.metadata["identity"], f"{section}.{declared.name}"


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
