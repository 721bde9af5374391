"""Two recipe files of one name never take each other's runs, and names are what folders and jobs can be called."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import recipe as recipes
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.launch import submit
from pipeline.launch.orders import SITE_FILE
from pipeline.record.history import find_run
from pipeline.runner import owner
from pipeline.runner.store import Store
from pipeline.toolchains import ROOT
from tests.unit.test_record import put

TEXT = "curate:\n  sources:\n    - {kind: python-docs, packages: [stdlib]}\n"


def write(folder: Path, name: str = "mine") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.yaml"
    file.write_text(TEXT)
    return file


def claimed(file: Path, runs: Path) -> None:
    loaded = recipes.load(str(file), ROOT)
    owner.claim(runs / loaded.name, loaded)


def test_a_recipe_of_the_same_name_is_refused_by_every_verb(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, one, other = tmp_path / "runs", write(tmp_path / "a"), write(tmp_path / "b")
    claimed(one, runs)
    put(Store(runs, "mine"), "curate", "one's own")
    verbs = ("plan", "status", "report", "verify", "chat", "rollback", "stop", "run", "curate", "cancel")
    for words in [[verb, str(other)] for verb in verbs] + [
        ["trace", str(other)],
        ["diff", str(other), "mine"],
    ]:
        assert main([*words, "--runs", str(runs)]) == 2, words
        said = " ".join(capsys.readouterr().err.split())
        assert f"holds what {one} made, and {other} would be taken for it" in said.replace("- ", "-")
    assert main(["report", str(one), "--runs", str(runs)]) == 0


def test_the_same_file_by_another_path_a_moved_one_and_a_sweep_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, one = tmp_path / "runs", write(tmp_path / "a")
    claimed(one, runs)
    monkeypatch.chdir(tmp_path / "a")
    claimed(Path("mine.yaml"), runs)
    (tmp_path / "link.yaml").symlink_to(one)
    (tmp_path / "c").symlink_to(tmp_path / "a")
    claimed(tmp_path / "c" / "mine.yaml", runs)
    moved = one.rename(write(tmp_path / "b"))
    claimed(moved, runs)
    with pytest.raises(UserError, match="would be taken for it"):
        claimed(write(tmp_path / "a"), runs)
    (tmp_path / "sweep.json").write_text("{}")
    claimed(write(tmp_path / "p1", "points"), runs)
    claimed(write(tmp_path / "p2", "points"), runs)


def test_a_recipe_of_the_project_is_the_same_in_every_copy_of_it(tmp_path: Path) -> None:
    loaded = recipes.load("llama-mini", ROOT)
    owner.claim(tmp_path / "llama-mini", loaded)
    assert '"recipes/llama-mini.yaml"' in (tmp_path / "llama-mini" / owner.RECORD).read_text()
    with pytest.raises(UserError, match=r"holds what recipes/llama-mini\.yaml made"):
        claimed(write(tmp_path / "own", "llama-mini"), tmp_path)


def test_what_a_submission_pinned_is_the_recipe_itself(tmp_path: Path) -> None:
    runs, one = tmp_path / "runs", write(tmp_path / "a")
    claimed(one, runs)
    folder = runs / "mine" / "launch" / "1"
    folder.mkdir(parents=True)
    text = TEXT + "description: '\\${NAME} and ${model.context}'\n"
    one.write_text(text)
    pinned, site = submit._pin(recipes.load(str(one), ROOT), folder)
    assert site.name == SITE_FILE
    assert recipes.load(str(pinned), ROOT).settings.description == "${NAME} and 256"
    claimed(pinned, runs)
    claimed(one, runs)


def test_names_with_spaces_are_found_by_their_name(tmp_path: Path) -> None:
    file = write(tmp_path / "a", "my model (2)")
    claimed(file, tmp_path / "runs")
    put(Store(tmp_path / "runs", "my model (2)"), "curate", "x")
    put(Store(tmp_path / "runs", "my"), "curate", "other")
    for words in ("my model (2)", str(file)):
        found = find_run(words, tmp_path / "runs")
        assert [each.manifest["recipe"] for each in found.artifacts] == ["my model (2)"]


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        "-x",
        "a;b",
        "a$b",
        "a'b",
        'a"b',
        "a\nb",
        "a\tb",
        "a ",
        " a",
        "x" * 90,
        "a*",
        "a#b",
        "a:b",
        "_x",
    ],
)
def test_names_that_no_folder_or_job_should_have_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="a recipe cannot be called"):
        recipes.load(str(write(tmp_path, name)), ROOT)


@pytest.mark.parametrize(
    "name", ["llama-tiny", "my model", "Modell-größe_2.1", "lr=1e-4,wd=0", "v2 (old)", "日本語"]
)
def test_names_that_people_give_are_taken(tmp_path: Path, name: str) -> None:
    assert recipes.load(str(write(tmp_path, name)), ROOT).name == name
