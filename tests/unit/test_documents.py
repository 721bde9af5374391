"""Which files a source consists of: litter, links, and the files of a saved dataset."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.documents import CACHED, HIDDEN, TWICE, encoding_fault, local_units, passed_over
from pipeline.errors import UserError
from pipeline.schema import Source


def names(root: Path, kind: str = "jsonl") -> list[str]:
    return [unit.name for unit in local_units(Source(kind=kind, path=str(root)))]


def fill(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("{}\n")


def test_hidden_files_and_platform_litter_are_passed_over_and_counted(tmp_path: Path) -> None:
    """The case "appledouble", and what else systems and editors leave."""
    litter = (
        "._a.jsonl", ".hidden.jsonl", ".git/x.jsonl", "__MACOSX/a.jsonl", "b.jsonl~", "~$c.jsonl",
        ".ipynb_checkpoints/a.jsonl", "Thumbs.db", "desktop.ini", ".DS_Store",
    )  # fmt: skip
    fill(tmp_path, "a.jsonl", "deep/er/B.JSONL", "c.jsonl.gz", "d.ndjson.zst", "table.csv", *litter)
    assert names(tmp_path) == ["a.jsonl", "c.jsonl.gz", "d.ndjson.zst", "deep/er/B.JSONL"]
    assert passed_over(Source(path=str(tmp_path))) == ({HIDDEN: len(litter), ".csv": 1}, [])


def test_a_hidden_folder_that_the_recipe_names_is_read(tmp_path: Path) -> None:
    fill(tmp_path, ".data/a.jsonl")
    assert names(tmp_path / ".data") == ["a.jsonl"]
    assert names(tmp_path / ".data" / "a.jsonl") == ["a.jsonl"]


def test_links_that_leave_are_followed_and_told_and_none_is_read_twice(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    fill(root, "a.jsonl", "sub/b.jsonl", "blobs/1234")
    fill(other, "c.jsonl")
    (root / "again.jsonl").symlink_to("a.jsonl")
    (root / "again").symlink_to("sub")
    (root / "up").symlink_to("..")
    (root / "out").symlink_to(other)
    (root / "named.jsonl").symlink_to("blobs/1234")  # as a hub's cache keeps its files
    (root / "dead.jsonl").symlink_to("nowhere")
    assert names(root) == ["a.jsonl", "dead.jsonl", "named.jsonl", "out/c.jsonl", "sub/b.jsonl"]
    skipped, links = passed_over(Source(path=str(root)))
    assert skipped[TWICE] == 3
    assert links == ["out"]


def test_folders_that_all_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    for one in range(14):
        fill(tmp_path, f"{one:02d}/a.jsonl")
        for two in range(14):
            (tmp_path / f"{one:02d}" / f"link{two:02d}").symlink_to(f"../{two:02d}")
    assert len(names(tmp_path)) == 14


def test_a_saved_dataset_is_the_files_of_its_state(tmp_path: Path) -> None:
    """The case "hf-dataset-cache": results of `map` and `filter` lie beside the data."""
    for split in ("train", "test"):
        fill(tmp_path, f"{split}/data-00000-of-00001.arrow", f"{split}/cache-e3893783502ea4d4.arrow")
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    fill(tmp_path, "dataset_dict.json", "train/dataset_info.json", "bare/x.arrow", "bare/cache-1.arrow")
    assert names(tmp_path, "dataset") == [
        "bare/x.arrow",
        "test/data-00000-of-00001.arrow",
        "train/data-00000-of-00001.arrow",
    ]
    assert passed_over(Source(kind="dataset", path=str(tmp_path))) == ({CACHED: 3}, [])
    (tmp_path / "train" / "data-00000-of-00001.arrow").unlink()
    assert "train/data-00000-of-00001.arrow" in names(tmp_path, "dataset")  # to be told, not passed over


@pytest.mark.parametrize(
    "state",
    [
        "{",
        "[]",
        "{}",
        '{"_data_files": [{"filename": "../x.arrow"}]}',
        '{"_data_files": [{"filename": "a.arrow"}], "_indices_files": [{"filename": "i.arrow"}]}',
    ],
)
def test_a_state_that_names_no_files_is_the_users_to_mend(tmp_path: Path, state: str) -> None:
    fill(tmp_path, "a.arrow")
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(UserError, match=r"state\.json"):
        names(tmp_path, "dataset")


def test_a_folder_that_cannot_be_listed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.scandir", refused)
    with pytest.raises(UserError, match="cannot be listed: Permission denied"):
        names(tmp_path)


def test_character_sets() -> None:
    assert encoding_fault(Source(encoding="cp1252")) is None
    assert "'rot13' is no character set" in str(encoding_fault(Source(encoding="rot13")))
    assert "'latin-99'" in str(encoding_fault(Source(encoding="latin-99")))
