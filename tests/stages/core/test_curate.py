"""Curation on real documentation: counts, duplicates, redaction, splits, broken input, resume."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import events, start, write_job

from pipeline import schema
from pipeline.stages import house_style
from pipeline.stages.curate import tokens
from pipeline.stages.curate.card import SAMPLES
from pipeline.stages.curate.duplicates import clusters, signatures
from pipeline.stages.curate.shards import SHARD
from pipeline.stages.curate.styles import WAYS, mend, spoil
from pipeline.stages.curate.summaries import parameters, summary
from pipeline.stages.data_sets import documents
from pipeline.stages.seals import keep_sound


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_counts_reconcile(curated: Path) -> None:
    report = json.loads((curated / "report.json").read_text())
    counts = report["documents"]
    assert counts["raw"] == counts["kept"] + sum(counts["dropped"].values())
    assert counts["kept"] == sum(report["sizes"]["pretrain"].values()) > 500
    assert counts["dropped"]["exact-duplicates"] > 0


def test_held_out_documents_have_no_near_duplicate_in_training(curated: Path) -> None:
    def body(record: dict[str, Any]) -> str:
        return record["text"].split("\n", 1)[1]

    train, test = ([body(r) for r in documents(curated, split)] for split in ("train", "test"))
    rows = signatures(train + test, schema.NearDuplicates(), 2)
    worst = max(float((rows[: len(train)] == row).mean(axis=1).max()) for row in rows[len(train) :])
    # Banding finds pairs above 0.5 with high probability, not with certainty.
    assert worst < 0.7


def test_pairs_keep_their_promises(curated: Path) -> None:
    for record in read(curated / "sft" / "train.jsonl"):
        assert record["name"] in record["messages"][0]["content"]
    trained = {r["messages"][1]["content"] for r in read(curated / "sft" / "train.jsonl")}
    assert not trained & {r["messages"][1]["content"] for r in read(curated / "sft" / "test.jsonl")}
    kinds = Counter()
    for record in read(curated / "preference" / "train.jsonl"):
        kinds[record["kind"]] += 1
        assert not house_style.check(record["chosen"])
        if record["kind"] == "style":
            assert house_style.check(record["rejected"])
        else:
            assert abs(len(record["chosen"]) - len(record["rejected"])) <= 0.1 * len(record["chosen"])
    assert kinds["style"] > kinds["content"] > 0


def test_the_hash_seed_never_changes_the_output(
    tmp_path: Path, curated: Path, run_stage: Callable[..., Path]
) -> None:
    sources = [schema.Source(kind="python-docs", packages=["networkx"])]
    process = start(
        write_job("curate", tmp_path / "w", curate={"sources": sources, "max_characters": 500}),
        PYTHONHASHSEED="11",
    )
    process.communicate(timeout=200)
    assert tree(tmp_path / "w" / "output") == tree(curated)


def test_kill_and_rerun_gives_the_same_bytes(tmp_path: Path, curated: Path) -> None:
    sources = [schema.Source(kind="python-docs", packages=["networkx"])]
    job = write_job("curate", tmp_path / "w", curate={"sources": sources, "max_characters": 500})
    process = start(job)
    while not list((tmp_path / "w").glob("state/pass-0/*/documents.jsonl")):
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "w" / "result.json").exists()
    assert start(job).wait(timeout=200) == 0
    assert tree(tmp_path / "w" / "output") == tree(curated)


def words(count: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices([f"w{i}" for i in range(3000)], k=count))


def test_only_unfinished_shards_are_made_again(tmp_path: Path, run_stage: Callable[..., Path]) -> None:
    path = tmp_path / "docs.jsonl"
    with open(path, "w") as handle:
        for number in range(3 * SHARD - 100):
            handle.write(json.dumps({"text": words(30, number), "title": f"document {number}"}) + "\n")
    settings = {"sources": [schema.Source(kind="jsonl", path=str(path))], "workers": 1}
    whole = run_stage("curate", tmp_path / "whole", curate=settings)
    job = write_job("curate", tmp_path / "w", curate=settings)
    process = start(job)
    while (
        not (tmp_path / "w" / "seals.jsonl").exists()
        or "pass-0/00000" not in (tmp_path / "w" / "seals.jsonl").read_text()
    ):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file: file.stat().st_ino for file in (tmp_path / "w" / "state").glob("pass-0/0000?/*")}
    assert 1 <= len({file.parent for file in finished}) < 3
    assert keep_sound(tmp_path / "w", pytest.fail) == []
    assert start(job).wait(timeout=200) == 0
    assert {file: file.stat().st_ino for file in finished} == finished
    assert tree(tmp_path / "w" / "output") == tree(whole / "output")


@pytest.fixture(scope="module")
def many_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings with forty sources, so forty shards, which are passed three times."""
    folder = tmp_path_factory.mktemp("files")
    for number in range(40):
        rows = [{"text": words(30, number % 30 * 50 + place), "title": "t"} for place in range(50)]
        (folder / f"{number:02d}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "sources": [schema.Source(path=str(path)) for path in sorted(folder.iterdir())],
        "stages": ["UnicodeReformatter", "exact-duplicates", "near-duplicates"],
        "pairs": False,
    }


def held(state: Path, name: str) -> int:
    """How many shards of a pass still hold their documents."""
    return len(list((state / name).glob("**/documents.jsonl")))


def test_documents_of_superseded_passes_leave_the_disk(
    tmp_path: Path, many_files: dict[str, Any], run_stage: Callable[..., Path]
) -> None:
    made = run_stage("curate", tmp_path / "w", curate=many_files)
    report = json.loads((made / "output" / "report.json").read_text())
    assert report["documents"]["dropped"] == {"exact-duplicates": 500}
    for name in ("raw", "pass-0", "pass-1", "pass-2"):
        assert 0 < held(made / "state", name) <= SAMPLES < 40
    assert not list((made / "state" / "finished").glob("*/pretrain.*.jsonl"))


def test_killed_anywhere_it_goes_on_from_what_was_not_released(
    tmp_path: Path, many_files: dict[str, Any], run_stage: Callable[..., Path]
) -> None:
    whole = tree(run_stage("curate", tmp_path / "whole", curate=many_files) / "output")
    work = tmp_path / "w"
    job = write_job("curate", work, curate=many_files)
    killed = 0
    for place in ("pass-1/00020", "pass-2/00010", "finished/00030"):
        process = start(job)
        while not (work / "state" / place).exists() and process.poll() is None:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        killed += process.returncode == -signal.SIGKILL
        keep_sound(work, lambda *_: pytest.fail("nothing was damaged"))
        shutil.rmtree(work / "output", ignore_errors=True)  # as the controller does
    assert killed == 3
    # A shard rots whose own sources were released: the step begins anew rather than fail.
    shutil.rmtree(work / "state" / "pass-2" / "00004")
    process = start(job)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert "begins anew" in events(work, "warning")[-1]["text"]
    assert tree(work / "output") == whole


@pytest.mark.parametrize(("edits", "duplicate"), [(0, True), (2, True), (60, False)])
def test_planted_near_duplicates(edits: int, duplicate: bool) -> None:
    original = words(300, 1)
    changed = original.split()
    for place in random.Random(2).sample(range(300), edits):
        changed[place] = "changed"
    rows = signatures([original, words(300, 3), " ".join(changed)], schema.NearDuplicates(), 1)
    assert (clusters(rows, 16, 0.8) == [0, 1, 0]) is duplicate


def test_house_style_by_rule() -> None:
    good = ["Return the norm of `x`.", "Compute e.g. the mean.", "Solve A x = b for x."]
    bad = {
        "Returns the norm.": "not imperative",
        "The norm.": "not imperative",
        "List of names.": "not imperative",
        "Return the norm": "no full stop",
        "Return it. Then stop.": "more than one sentence",
        "norm(x, ord) -> Return the norm.": "restates the signature",
        "Return the\nnorm.": "more than one line",
        "": "empty",
    }
    assert all(house_style.check(text) == [] for text in good)
    assert all(rule in house_style.check(text) for text, rule in bad.items())


@pytest.mark.parametrize(
    ("written", "mended"),
    [
        ("Returns the norm of x", "Return the norm of x."),
        ("This function computes and returns a mean.", "Compute and return a mean."),
        ("The number of rows.", "Return the number of rows."),
        ("Applies f.", "Apply f."),
        ("Returning the value.", "Return the value."),
        ("Foo bar baz.", None),
        ("Return it. Then stop.", None),
    ],
)
def test_mending(written: str, mended: str | None) -> None:
    assert mend(written, "function") == mended


def test_every_way_out_of_house_style_breaks_a_rule() -> None:
    for choice in range(len(WAYS)):
        spoilt = spoil("Return the norm of x.", "function", "numpy.norm", ["x", "ord"], choice)
        assert spoilt is not None
        assert house_style.check(spoilt)


def test_summaries_and_parameters() -> None:
    import scipy.linalg

    assert summary(scipy.linalg.solve.__doc__).startswith("Solve the equation")
    assert "a" in parameters(__import__("inspect").cleandoc(scipy.linalg.solve.__doc__))
    assert summary("f(x, y) -> int\n\nAdd two numbers.") == "Add two numbers."
    assert summary(".. deprecated:: 1.0\n\n>>> f()") is None


def jsonl(path: Path, good: int, bad: list[bytes]) -> Path:
    lines = [json.dumps({"title": f"Item {i}", "text": words(30, i)}).encode() for i in range(good)]
    path.write_bytes(b"\n".join(lines[:2] + bad + lines[2:]) + b"\n")
    return path


def test_broken_lines_are_quarantined_and_the_run_goes_on(
    tmp_path: Path, run_stage: Callable[..., Path]
) -> None:
    bad = [b"{broken", b"[1, 2]", b'{"text": 5}', b'{"text": "\xff\xfe"}']
    path = jsonl(tmp_path / "docs.jsonl", 400, bad)
    sources = [schema.Source(kind="jsonl", path=str(path))]
    work = run_stage("curate", tmp_path / "w", curate={"sources": sources, "max_bad_share": 0.02})
    quarantine = read(work / "output" / "quarantine.jsonl")
    assert [(q["line"], q["input"]) for q in quarantine] == [
        (n, "sources.0/docs.jsonl") for n in (3, 4, 5, 6)
    ]
    report = json.loads((work / "output" / "report.json").read_text())
    assert report["unreadable_records"] == 4
    assert report["documents"]["raw"] == 400
    assert "4 input records" in events(work, "warning")[0]["text"]


def test_too_many_broken_lines_stop_the_run(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "docs.jsonl", 20, [b"{broken"])
    process = start(write_job("curate", tmp_path / "w", curate={"sources": [schema.Source(path=str(path))]}))
    process.communicate(timeout=100)
    assert process.returncode == 2
    message = events(tmp_path / "w", "error")[0]["text"]
    assert "1 of 21 input records" in message
    assert "docs.jsonl:3: not JSON" in message


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text("\n")
    sources = [schema.Source(path=str(tmp_path / "docs.jsonl"))]
    process = start(write_job("curate", tmp_path / "w", curate={"sources": sources}))
    process.communicate(timeout=100)
    assert process.returncode == 2
    assert "no document was found" in events(tmp_path / "w", "error")[0]["text"]


def test_a_folder_of_text_and_ready_pairs(tmp_path: Path, run_stage: Callable[..., Path]) -> None:
    folder = tmp_path / "notes"
    folder.mkdir()
    for i in range(60):
        (folder / f"note{i}.md").write_text(f"# Note {i}\n\nExplain item {i} in detail. {words(40, i)}\n")
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"Q{i}", "chosen": f"Mail a{i}@b.org", "rejected": "no"}) + "\n"
            for i in range(50)
        )
    )
    sources = [schema.Source(kind="text", path=str(folder))]
    work = run_stage("curate", tmp_path / "w", curate={"sources": sources, "preferences": str(pairs)})
    train = list(documents(work / "output", "train"))
    assert train[0]["text"].startswith("# Note")
    given = [r for r in read(work / "output" / "preference" / "train.jsonl") if r["kind"] == "given"]
    assert given
    assert all(r["chosen"] == "Mail <EMAIL>" for r in given)


def test_the_chat_template_renders_as_promised(curated: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")
    chat = [{"role": "user", "content": "Hi\nthere"}, {"role": "assistant", "content": "Yes."}]
    assert tokenizer.apply_chat_template(chat, tokenize=False) == (
        "<|im_start|>user\nHi\nthere<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n"
    )
    assert [tokenizer.convert_tokens_to_ids(token) for token in tokens.SPECIALS] == [0, 1, 2, 3]
    text = "Unicode: naïve – 東京 \t x"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_long_text_in_pieces_has_the_same_tokens(curated: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(curated / "tokenizer" / "tokenizer.json"))
    rows = [*documents(curated, "train"), *documents(curated, "test")]
    for joint in ("\n", " ", "\n\n   ", "\t"):
        text = joint.join(row["text"] for row in rows) + "x" * 100_000
        found = list(tokens.pieces(text))
        assert "".join(found) == text
        assert len(found) > 5
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        assert [i for piece in found for i in tokenizer.encode(piece, add_special_tokens=False).ids] == whole
