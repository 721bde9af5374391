"""JSON that every reader takes, or a refusal that says which figure cannot be written."""

from __future__ import annotations

import ast
import math
from pathlib import Path

import pytest

from pipeline import strict_json
from pipeline.stages.step import InputError, Step, write_json, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
NEITHER = (math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("value", NEITHER)
def test_what_is_no_number_is_refused_by_its_place(value: float, tmp_path: Path) -> None:
    with pytest.raises(strict_json.NotFinite, match=r"^curves\.loss\.1\.0 = -?(nan|inf) "):
        strict_json.dumps({"a": "NaN", "curves": {"loss": [[1.0], (value, 2)]}})
    with pytest.raises(strict_json.NotFinite):
        write_json(tmp_path / "x.json", [value])
    assert not (tmp_path / "x.json").exists()
    with pytest.raises(strict_json.NotFinite):
        write_jsonl(tmp_path / "x.jsonl", [{"score": value}])


@pytest.mark.parametrize("text", ["NaN", "[1, Infinity]", '{"a": -Infinity}', b"[NaN]"])
def test_what_is_no_json_is_not_read(text: str | bytes) -> None:
    with pytest.raises(strict_json.NotFinite):
        strict_json.loads(text)


def test_all_else_is_as_pythons() -> None:
    value = {"b": [1, 2.5, "NaN", None, True], "a": {"ü": 1e308}}
    assert strict_json.loads(strict_json.dumps(value)) == value
    assert strict_json.dumps({"b": 1, "a": 2}, sort_keys=True) == '{"a": 2, "b": 1}'
    shared = [1.0]
    assert strict_json.dumps([shared, shared]) == "[[1.0], [1.0]]"


def test_a_step_reports_no_figure_that_is_no_number(tmp_path: Path) -> None:
    step = Step("train", "m", "r", "0", {}, {}, None, tmp_path, 1)
    with pytest.raises(strict_json.NotFinite, match=r"values\.loss"):
        step.metric(3, loss=math.nan)
    with pytest.raises(strict_json.NotFinite, match=r"metrics\.validation_loss"):
        step.finish(metrics={"validation_loss": math.inf}, headline="x")
    assert not (tmp_path / "result.json").exists()
    assert not issubclass(strict_json.NotFinite, InputError)


def test_nothing_of_the_project_writes_json_by_another_way() -> None:
    """In the package by the helper; in what is served, which is alone with Triton, by ``allow_nan=False``.

    ``pipeline/conversations`` is served, too.
    """
    found = []
    for file in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "deploy").rglob("*.py")]:
        if file.name == "strict_json.py":
            continue
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            holder = call.func.value
            plain = (
                isinstance(holder, ast.Name) and holder.id == "json" and call.func.attr in ("dump", "dumps")
            )
            if plain and not any(keyword.arg == "allow_nan" for keyword in call.keywords):
                found.append(f"{file.relative_to(ROOT)}:{call.lineno}")
    assert found == []
