"""Strange data and settings: each ends in a sentence for the user or in an account, never in a crash."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import events, start, write_job

from pipeline import schema
from pipeline.documents import TWICE, local_units, passed_over
from pipeline.stages.data_sets import documents

PROSE = "The town council met on day {} to talk about bridge number {} over the river, and went home early. "


def jsonl(path: Path, rows: list[dict[str, Any]]) -> schema.Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return schema.Source(path=str(path), name=path.stem)


def prose(number: int, **more: Any) -> dict[str, Any]:
    return {"text": "".join(PROSE.format(number, number * each) for each in range(1, 4)), **more}


@pytest.fixture
def curate(tmp_path: Path, run_stage: Callable[..., Path]) -> Callable[..., tuple[dict[str, Any], Path]]:
    """Run curation; returns its report and its output."""

    def run(sources: list[schema.Source], **settings: Any) -> tuple[dict[str, Any], Path]:
        wanted = {"sources": sources, "stages": ["UnicodeReformatter", "redact"], "pairs": False, **settings}
        made = run_stage("curate", tmp_path / "w", curate=wanted) / "output"
        return json.loads((made / "report.json").read_text()), made

    return run


def refused(folder: Path, sources: list[schema.Source], **settings: Any) -> str:
    """What curation says when it ends with status 2."""
    process = start(write_job("curate", folder, curate={"sources": sources, "pairs": False, **settings}))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    return str(events(folder, "error")[0]["text"])


def test_titles_are_redacted_and_repaired_like_texts(curate: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        prose(n, title=f"Ask jane.doe{n}@example.org, key AKIAIOSFODNN7EXAMPLE; cafÃ©") for n in range(30)
    ]
    rows += [prose(n, title="call 4111 1111 1111 1111") for n in range(30, 33)]
    report, made = curate([jsonl(tmp_path / "a.jsonl", rows)], redact=schema.Redact(credit_card="drop"))
    written = b"".join(path.read_bytes() for path in made.rglob("*.jsonl"))
    assert b"jane.doe" not in written
    assert b"AKIA" not in written
    assert "café".encode() in written
    assert report["redactions"]["email"] == {"replace": 30}
    assert report["fates"] == {"redact": {"holds credit_card": 3}}


def test_a_title_from_an_evaluation_set_goes(curate: Callable[..., Any], tmp_path: Path) -> None:
    quiz = " ".join(f"word{n}" for n in range(20))
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": quiz}) + "\n")
    source = jsonl(tmp_path / "a.jsonl", [prose(n, title=quiz if n < 2 else f"Day {n}") for n in range(40)])
    contaminated = schema.Decontaminate(sets=[str(tmp_path / "quiz.jsonl")], own_test=False)
    _, made = curate([source], stages=["decontaminate"], decontaminate=contaminated)
    assert not any("word7 word8" in row["text"] for row in documents(made, "train"))


def test_what_the_weights_leave_out_is_dropped_by_the_blend(
    curate: Callable[..., Any], tmp_path: Path
) -> None:
    many = jsonl(tmp_path / "many.jsonl", [prose(n) for n in range(200)])
    few = jsonl(tmp_path / "few.jsonl", [prose(n) for n in range(1000, 1020)])
    many.weight = few.weight = 1.0
    report, made = curate([many, few], keep_dropped=True)
    counts = report["documents"]
    assert counts["dropped"]["blend"] > 150
    assert counts["raw"] == 220 == counts["kept"] + counts["dropped"]["blend"]
    rows = [row for split in ("train", "validation", "test") for row in documents(made, split)]
    assert len(rows) == counts["kept"]
    dropped = [json.loads(line) for line in (made / "dropped" / "documents.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in dropped} == {"beyond the weight of its source"}
    assert {row["id"] for row in dropped}.isdisjoint(row["id"] for row in rows)
    assert len(dropped) == counts["dropped"]["blend"]
    warned = [event["text"] for event in events(made.parent, "warning")]
    assert any("curate.sources.0 (many) gives" in text for text in warned)
    card = json.loads((made / "card.json").read_text())
    assert card["stages"][-1]["name"] == "blend"
    assert card["stages"][-1]["out"] == counts["kept"]


def test_a_document_that_begins_with_a_page_of_white_space(
    curate: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [prose(n) for n in range(30)]
    rows += [{"text": " " * 900 + PROSE.format(n, "seven")} for n in range(30)]
    report, _ = curate([jsonl(tmp_path / "a.jsonl", rows)], stages=["UnicodeReformatter"], max_characters=500)
    assert report["documents"]["kept"] == 60


def test_texts_without_a_word_are_no_duplicates_of_each_other(
    curate: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{"text": text} for text in ("🎉🎉🎉 🎊🎊", "🔥🔥 💧", "!!! ???", "~~~ ***")]
    rows += [prose(n) for n in range(30)]
    rows.append({"text": "🎉🎉🎉 🎊🎊"})
    report, made = curate([jsonl(tmp_path / "a.jsonl", rows)], stages=["near-duplicates"], keep_dropped=True)
    dropped = [json.loads(line) for line in (made / "dropped" / "documents.jsonl").read_text().splitlines()]
    assert [row["text"] for row in dropped if row["text"].isascii() is False] == ["🎉🎉🎉 🎊🎊"]
    assert not any(row["text"] in ("!!! ???", "~~~ ***") for row in dropped)
    assert report["documents"]["raw"] == 35


def test_file_names_links_and_what_is_not_read(curate: Callable[..., Any], tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "docs", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for number in range(20):
        (folder / f"náme ☃ {number}.txt").write_text(prose(number)["text"])
        (elsewhere / f"{number}.txt").write_text(prose(number + 100)["text"])
    (folder / "linked").symlink_to(elsewhere)
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to(".")
    (folder / "me.txt").symlink_to("me.txt")
    with open(os.fsencode(folder) + b"/n\xff.txt", "w") as handle:
        handle.write("text")
    (folder / "table.csv").write_text("1,2")
    source = schema.Source(kind="text", path=str(folder))
    assert len(local_units(source)) == 42
    assert passed_over(source) == ({".csv": 1, TWICE: 2}, ["linked"])
    report, made = curate([source], max_bad_share=0.1)
    assert report["documents"]["raw"] == 40
    assert report["files_not_read"] == {"0": {".csv": 1, TWICE: 2}}
    assert report["links_outside"] == {"0": 1}
    reasons = [json.loads(line)["reason"] for line in (made / "quarantine.jsonl").read_text().splitlines()]
    assert sorted(reasons) == ["is a link to nothing", "its name is not UTF-8; rename it"]
    assert any(
        "3 files or folders there are not read" in event["text"] for event in events(made.parent, "warning")
    )


def test_a_wrong_model_file_is_told(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [prose(n) for n in range(5)])
    language = schema.Language(model=source.path)
    assert "curate.language.model" in refused(
        tmp_path / "w", [source], stages=["language"], language=language
    )
    filters = {"FastTextQualityFilter": {"model_path": source.path}}
    said = refused(tmp_path / "v", [source], stages=["FastTextQualityFilter"], filters=filters)
    assert "curate.filters.FastTextQualityFilter: it cannot load what it needs" in said


@pytest.mark.parametrize("parameters", [{"n": 0}, {"n": 2.5}])
def test_parameters_with_which_nothing_can_be_scored(tmp_path: Path, parameters: dict[str, Any]) -> None:
    source = jsonl(tmp_path / "a.jsonl", [prose(n) for n in range(5)])
    filters = {"RepeatingTopNGramsFilter": parameters}
    said = refused(tmp_path / "w", [source], stages=["filters"], filters=filters)
    assert said.startswith("curate.filters.RepeatingTopNGramsFilter: ")


def test_ids_that_are_not_unique(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", [prose(n, key=n % 10) for n in range(20)])
    source.id_field = "key"
    assert "belongs to more than one document (10 ids do)" in refused(tmp_path / "w", [source])


def test_shares_that_leave_nothing_to_train_on_leave_one_document(
    curate: Callable[..., Any], tmp_path: Path
) -> None:
    source = jsonl(tmp_path / "a.jsonl", [prose(n) for n in range(10)])
    report, _ = curate([source], validation_share=0.5, test_share=0.4999999)
    assert all(report["sizes"]["pretrain"].values())
    assert sum(report["sizes"]["pretrain"].values()) == 10


def test_a_line_in_front_of_a_file_moves_no_document(tmp_path: Path, run_stage: Callable[..., Path]) -> None:
    """Split, shuffle and what a weight leaves out go by content; ids and lines count for nothing."""
    rows, sides = [prose(n) for n in range(60)], []
    for number, front in enumerate(
        ([], [{"text": "A quite different line stands in front of all the others here."}])
    ):
        few = jsonl(tmp_path / "few.jsonl", [prose(n) for n in range(1000, 1010)])
        many = jsonl(tmp_path / "many.jsonl", [*front, *rows])
        many.weight = few.weight = 1.0
        settings = {"sources": [many, few], "stages": ["exact-duplicates"], "pairs": False, "tokens": 600}
        made = run_stage("curate", tmp_path / f"w{number}", curate=settings) / "output"
        splits = ("train", "validation", "test")
        sides.append({row["text"]: split for split in splits for row in documents(made, split)})
    first, second = sides
    both = first.keys() & second.keys()
    assert all(first[text] == second[text] for text in both)
    assert {split for text, split in first.items()} == {"train", "validation", "test"}
    held = [{text for text, split in side.items() if split != "train"} for side in sides]
    assert held[0] <= held[1]


def test_a_users_pairs_and_the_lines_they_are_told_by(curate: Callable[..., Any], tmp_path: Path) -> None:
    source = jsonl(tmp_path / "docs.jsonl", [prose(n) for n in range(30)])
    good = [{"prompt": f"q {n}", "responses": ["a b c", "b"], "scores": [2, 1]} for n in range(6)]
    lines = ["{broken", *map(json.dumps, good), json.dumps({"prompt": "q", "response": "x"})]
    lines.append(json.dumps({"prompt": "long", "responses": ["a " * 5000, "b"], "scores": [2, 1]}))
    path = tmp_path / "a:b.jsonl"
    path.write_text("\n".join(lines) + "\n")
    report, made = curate([source], scored=schema.Scored(path=str(path)), chat_tokens=1000, max_bad_share=0.5)
    faults = [json.loads(line) for line in (made / "quarantine.jsonl").read_text().splitlines()]
    assert [fault["line"] for fault in faults] == [1, 8, 0]  # a pair is made of several lines
    assert report["unreadable_records"] == 3
    assert report["preferences"]["pairs"] == 6
    scored = schema.Scored(path=str(path))
    said = refused(tmp_path / "v", [source], scored=scored, max_bad_share=0.25, chat_tokens=1000)
    assert "3 of 9 input records cannot be read" in said


def test_documents_are_whole_and_what_a_recipe_cuts_is_told(
    run_stage: Callable[..., Path], tmp_path: Path
) -> None:
    """The case "long-document"."""
    rows = [prose(n, text=f"Chapter {n}. " + PROSE.format(n, n) * 60 + f"End of {n}.") for n in range(12)]
    rows += [{"text": ""}, {"text": None}, *(prose(n, url="x", meta={"a": 1}) for n in range(20, 30))]
    made = {}
    for limit in (0, 500):
        wanted = {
            "sources": [jsonl(tmp_path / "a.jsonl", rows)],
            "stages": ["UnicodeReformatter"],
            "pairs": False,
        }
        if limit:
            wanted["max_characters"] = limit
        made[limit] = run_stage("curate", tmp_path / f"w{limit}", curate=wanted) / "output"
    whole = [row["text"] for split in ("train", "validation", "test") for row in documents(made[0], split)]
    assert sum(text.endswith(f"End of {n}.") for text in whole for n in range(12)) == 12
    reports = {limit: json.loads((made[limit] / "report.json").read_text()) for limit in made}
    assert reports[0]["cut"] == {}
    assert reports[0]["fates"] == {"reading": {"the text is empty": 2}}
    assert reports[0]["unused_fields"] == {"sources.0": {"meta": 10, "url": 10}}
    assert reports[500]["cut"]["documents"] == 12
    told = [event["text"] for event in events(made[500].parent, "warning")]
    assert any("12 of 22 documents are cut to 500 characters: 88%" in text for text in told), told
    assert any(
        "curate.sources.0: these fields of its records are not used: meta (10), url (10)" in t for t in told
    )
    assert "Cut or not used" in (made[500] / "card.html").read_text()
