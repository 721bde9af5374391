"""What plan says after each kind of change, and that saying it changes nothing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.graph import STAGES
from pipeline.runner import provenance
from pipeline.toolchains import ROOT
from tests.faults.harness import TALLY, Light
from tests.faults.light.__main__ import chain


def plan(light: Light, **options: Any) -> list[tuple[str, str]]:
    """(state, why) of the three steps."""
    made = chain(light.runs, light.documents, **{k: v for k, v in options.items() if k == "seed"})
    made.strict, made.verify = options.get("strict", False), options.get("verify", False)
    made.__post_init__()
    before = {path: path.lstat().st_mtime_ns for path in light.runs.rglob("*")}
    planned = [(item.state, item.why) for item in made.plan()]
    assert {path: path.lstat().st_mtime_ns for path in light.runs.rglob("*")} == before
    return planned


@pytest.fixture
def done(light: Light, tmp_path: Path) -> Light:
    own = Light(light.runs, Path(shutil.copy(light.documents, tmp_path / "documents.jsonl")))
    status, output = own()
    assert status == 0, output
    return own


def test_everything_is_done_and_nothing_is_there(done: Light, light: Light, tmp_path: Path) -> None:
    assert [state for state, _ in plan(done)] == ["done"] * 3
    nothing = plan(Light(tmp_path / "other", done.documents))
    assert nothing == [
        ("run", "nothing is there yet"),
        ("run", "follows curate"),
        ("run", "follows curate, train"),
    ]


def test_a_changed_setting_and_a_changed_input_are_named(done: Light) -> None:
    assert plan(done, seed=7)[1:] == [
        ("run", "train.seed: 1234 -> 7, from default"),
        ("run", "follows train"),
    ]
    with open(done.documents, "a") as handle:
        handle.write('{"text": "one more"}\n')
    assert plan(done, seed=7) == [
        ("run", "input documents.jsonl changed"),
        ("run", "train.seed: 1234 -> 7, from default; follows curate"),
        ("run", "follows curate, train"),
    ]


def test_the_same_content_elsewhere_is_the_same_input(done: Light, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = Path(shutil.move(done.documents, tmp_path / "elsewhere" / "documents.jsonl"))
    assert [state for state, _ in plan(Light(done.runs, moved))] == ["done"] * 3


def test_a_relative_runs_folder_works_like_any_other(light: Light, whole: dict[str, Any]) -> None:
    status, output = Light(Path(os.path.relpath(light.runs, ROOT)), light.documents)()
    assert status == 0, output
    assert light.published() == whole


def test_interrupted_work_is_resumed_and_says_how_far_it_had_come(light: Light, shim: Path) -> None:
    with TALLY.fault("SIGKILL before a file operation"):
        faults = {"LD_PRELOAD": str(shim), "FAULT_ROOT": str(light.runs)}
        assert light(**faults, FAULT_AT="train:60", FAULT_KIND="kill")[0] == 1
        state, why = plan(light)[1]
        assert state == "resume"
        assert "goes on; it had come to" in why
        assert "/40 steps" in why
        assert light()[0] == 0


def test_damage_is_told_before_anything_runs(done: Light) -> None:
    with TALLY.fault("deleted file in a published artifact"):
        ((done.runs / "light" / "train" / "latest").resolve() / "model" / "weights").unlink()
        assert plan(done)[1] == ("run", "its artifact is damaged: model/weights is missing")
        status, output = done()
        assert status == 0, output
        assert "train     starts: its artifact is damaged" in output
        assert "export    up to date" in output  # the same bytes again
        assert done.quarantined() == ["stood where an artifact was to be published: model/weights is missing"]


def test_changed_code_is_advice_and_counts_under_strict(done: Light, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [state for state, _ in plan(done, strict=True)] == ["done"] * 3
    monkeypatch.setattr("pipeline.runner.chain.changes_since", lambda *_: ["code changed since"])
    made = chain(done.runs, done.documents)
    assert [(item.state, item.advice) for item in made.plan()] == [("done", ["code changed since"])] * 3
    assert plan(done, strict=True)[0] == ("run", "code changed since")


def test_a_source_digest_covers_what_a_stage_imports_and_nothing_else() -> None:
    names = {stage.name: {file.name for file in provenance.source_files(stage.source)} for stage in STAGES}
    assert {"preference.py", "preference_losses.py", "recipe.py", "step.py", "seals.py"} <= names["align"]
    assert not {"display.py", "chain.py", "cli.py", "triton.py"} & names["align"]
    assert "triton.py" in names["deploy"]
    assert "card.py" in names["export"]


def test_an_input_that_changes_while_it_is_read_is_not_published(done: Light) -> None:
    with TALLY.fault("input written while a step reads it"):
        shutil.rmtree(done.runs / "light")
        controller = done.start(LIGHT_CURATE_S="1.5")
        while not list((done.runs / "light" / "curate" / ".work").glob("*/log.txt")):
            assert controller.poll() is None
        with open(done.documents, "a") as handle:
            handle.write('{"text": "one more"}\n')
        output, _ = controller.communicate(timeout=60)
        assert controller.returncode == 2, output
        assert "changed while the step was reading it; nothing was published" in output
        assert done()[0] == 0
        assert [state for state, _ in plan(done)] == ["done"] * 3
