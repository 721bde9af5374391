"""Curation as a whole on mixed sources: two drivers, every document's fate, blends, formats."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import events, load_step, start, write_job

from pipeline import schema
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.data_sets import documents
from pipeline.stages.step import Step

FILTERS = {
    "WordCountFilter": {"min_words": 8},
    "NonAlphaNumericFilter": {"max_non_alpha_numeric_to_text_ratio": 0.5},
    "RepeatingTopNGramsFilter/3": {"n": 3, "max_repeating_ngram_ratio": 0.18},
    "PunctuationFilter": None,
}
STAGES = [
    "UnicodeReformatter",
    "language",
    "WordCountFilter",
    "filters",
    "redact",
    "exact-duplicates",
    "near-duplicates",
]
GERMAN = "Der Stadtrat traf sich am Dienstag, um über die neue Brücke über den Fluss zu sprechen, Nummer {}. "


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A small web crawl, a folder of notes and a JSONL file, with duplicates, German and broken lines."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    folder = tmp_path_factory.mktemp("corpus")
    docs = [d for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    long = [d for d in docs if len(d["text"].split()) > 60]
    with open(folder / "crawl.warc.gz", "wb") as handle:
        writer = WARCWriter(handle, gzip=True)
        for number, document in enumerate(long[:60]):
            prose = " ".join(document["text"].replace("<", " ").split())
            body = f"<html><head><title>{document['name']}</title></head><body><p>It is said of this that {prose} and so it was in the end of the day for all of them.</p></body></html>"
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1")
            record = writer.create_warc_record(
                f"https://e.org/{number}", "response", payload=io.BytesIO(body.encode()), http_headers=headers
            )
            writer.write_record(record)
    (folder / "notes").mkdir()
    for number, document in enumerate(docs[200:260]):
        (folder / "notes" / f"{number:03d}.md").write_text(f"# {document['name']}\n\n{document['text']}\n")
    with open(folder / "docs.jsonl", "w") as handle:
        for number, document in enumerate(docs[400:1000]):
            handle.write(json.dumps({"text": document["text"], "title": document["name"]}) + "\n")
            if number % 100 == 0:
                handle.write("{broken\n")
                handle.write(json.dumps({"text": GERMAN.format(number) * 3}) + "\n")
                handle.write(json.dumps({"text": document["text"] + " Mail me@example.org"}) + "\n")
    return {
        "sources": [
            schema.Source(kind="warc", path=str(folder / "crawl.warc.gz"), name="crawl", licence="CC-BY-4.0"),
            schema.Source(kind="text", path=str(folder / "notes"), name="notes", licence="internal"),
            schema.Source(kind="jsonl", path=str(folder / "docs.jsonl"), name="docs"),
        ],
        "stages": STAGES,
        "filters": FILTERS,
        "language": schema.Language(drop=["ru"], route=["de"]),
        "max_bad_share": 0.05,
        "keep_dropped": True,
    }


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, corpus: dict[str, Any], run_stage: Callable[..., Path]
) -> Path:
    return run_stage("curate", tmp_path_factory.mktemp("made"), curate={**corpus, "workers": 2}) / "output"


def test_every_documents_fate_is_known(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    counts = report["documents"]
    assert counts["raw"] == counts["kept"] + sum(counts["dropped"].values()) == 60 + 60 + 612
    assert counts["dropped"] == {s: sum(r.values()) for s, r in report["fates"].items()}
    dropped = read(made / "dropped" / "documents.jsonl")
    by_fate = Counter((row["dropped_by"], row["reason"]) for row in dropped)
    assert by_fate == {
        (s, r): n for s, reasons in report["fates"].items() for r, n in reasons.items() if s != "reading"
    }
    kept = [row["id"] for name in ("pretrain", "pretrain-de") for split in ("train", "validation", "test")
            if (made / name / split).exists() for row in documents(made, split, name)]  # fmt: skip
    assert len(kept) == len(set(kept)) == counts["kept"]
    assert not set(kept) & {row["id"] for row in dropped}
    assert report["fates"]["exact-duplicates"]["exact duplicate"] > 0
    assert report["fates"]["near-duplicates"]["near-duplicate"] > 0
    assert report["redactions"]["email"]["replace"] >= 6
    assert report["unreadable_records"] == 6
    assert [q["line"] for q in read(made / "quarantine.jsonl")][:2] == [2, 104 + 1]


def test_the_data_card_agrees_with_the_data(made: Path) -> None:
    report = json.loads((made / "report.json").read_text())
    card = json.loads((made / "card.json").read_text())
    documents_of = card["documents"]
    dropped = sum(count for reasons in documents_of["dropped"].values() for count in reasons.values())
    assert documents_of["raw"] == documents_of["kept"] + dropped == report["documents"]["raw"]
    left = documents_of["raw"]
    for stage in card["stages"]:
        assert stage["in"] == left >= stage["out"]
        left = stage["out"]
    assert left == documents_of["kept"]
    assert {stage["name"] for stage in card["stages"]} >= {"WordCountFilter", "redact", "near-duplicates"}
    read_as_text = documents_of["raw"] - sum(documents_of["dropped"].get("reading", {}).values())
    for when, count in (("before", read_as_text), ("after", documents_of["kept"])):
        assert sum(card["lengths"][when]["counts"]) == count
    rows = [row for split in ("train", "validation", "test") for row in documents(made, split)]
    german = read(made / "pretrain-de" / "train" / "00000.jsonl")
    assert sum(each["documents"] for each in card["splits"].values()) >= len(rows) + len(german)
    assert {(s["name"], s["licence"]) for s in card["sources"]} == {
        ("crawl", "CC-BY-4.0"),
        ("notes", "internal"),
        ("docs", None),
    }
    fates = {sample["fate"] for sample in card["samples"]}
    assert card["samples"]
    assert all(fate == "kept" or fate.startswith("dropped by") for fate in fates)
    page = (made / "card.html").read_text()
    assert all(word in page for word in ("crawl", "CC-BY-4.0", "near-duplicate", "WordCountFilter"))
    assert not re.search(r"(src|href)=[\"']?https?:", page)  # the page fetches nothing
    assert card["redactions"]["email"]["replace"] >= 1


def test_languages_are_routed(made: Path) -> None:
    german = [row for split in ("train", "validation", "test") if (made / "pretrain-de" / split).exists()
              for row in documents(made, split, "pretrain-de")]  # fmt: skip
    assert german
    assert all("Stadtrat" in row["text"] and row["language"] == "de" for row in german)
    assert not any("Stadtrat" in row["text"] for row in documents(made, "train"))


@pytest.mark.parametrize("settings", [{"workers": 1}, {"workers": 3, "memory_mb": 64}])
def test_workers_and_hash_seed_never_change_a_byte(
    tmp_path: Path, corpus: dict[str, Any], made: Path, settings: dict[str, Any]
) -> None:
    process = start(write_job("curate", tmp_path / "w", curate={**corpus, **settings}), PYTHONHASHSEED="23")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert tree(tmp_path / "w" / "output") == tree(made)


def test_curators_ray_executor_makes_the_same_bytes(
    tmp_path: Path, corpus: dict[str, Any], made: Path
) -> None:
    job = write_job("curate", tmp_path / "w", curate=corpus)
    plain = json.loads(job.read_text())
    job.write_text(json.dumps({**plain, "extra": {"ray": "local"}}))
    process = start(job)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert tree(tmp_path / "w" / "output") == tree(made)


def test_a_blend_gives_exactly_the_tokens_that_it_says(
    tmp_path: Path, corpus: dict[str, Any], run_stage: Callable[..., Path]
) -> None:
    sources = [
        schema.Source(**{**vars(s), "weight": w})
        for s, w in zip(corpus["sources"], (3.0, 1.0, 2.0), strict=True)
    ]
    settings = {**corpus, "sources": sources, "language": schema.Language(), "keep_dropped": False}
    made = run_stage("curate", tmp_path / "w", curate=settings) / "output"
    # How much there is depends on the installed packages' docstrings: ask for more than one source has.
    there = [share["tokens"] / share["epochs"] for share in check_blend(made, (3, 1, 2))]
    budget = 6 * int(1.5 * min(tokens / weight for tokens, weight in zip(there, (3, 1, 2), strict=True)))
    made = (
        run_stage("curate", tmp_path / "more", curate={**settings, "tokens": budget, "max_epochs": 8.0})
        / "output"
    )
    shares = check_blend(made, (3, 1, 2))
    assert sum(share["wanted_tokens"] for share in shares) == budget
    assert max(share["epochs"] for share in shares) > 1
    ids = [row["id"] for row in documents(made, "train")]
    assert len(ids) == len(set(ids))  # a copy has an id of its own
    assert any(identifier.endswith("@2") for identifier in ids)


def check_blend(made: Path, weights: tuple[int, ...]) -> list[dict[str, Any]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(made / "tokenizer" / "tokenizer.json"))
    counted: Counter[str] = Counter()
    longest = 0
    for row in documents(made, "train"):
        tokens = len(tokenizer.encode(row["text"], add_special_tokens=False).ids)
        counted[row["source"]] += tokens
        longest = max(longest, tokens)
    shares = json.loads((made / "report.json").read_text())["sources"]
    assert {share["name"]: share["tokens"] for share in shares} == counted
    total = sum(share["wanted_tokens"] for share in shares)
    for share, weight in zip(shares, weights, strict=True):
        assert share["wanted_tokens"] == pytest.approx(total * weight / sum(weights), abs=2)
        # Whole documents: at most one short of the budget, never over it.
        assert 0 <= share["wanted_tokens"] - share["tokens"] < longest
    return list(shares)


def test_a_budget_beyond_what_there_is_is_refused(tmp_path: Path, corpus: dict[str, Any]) -> None:
    sources = [schema.Source(**{**vars(s), "weight": 1.0}) for s in corpus["sources"]]
    settings = {**corpus, "sources": sources, "tokens": 10**7}
    process = start(write_job("curate", tmp_path / "w", curate=settings))
    process.communicate(timeout=100)
    assert process.returncode == 2
    assert "would have to be repeated" in events(tmp_path / "w", "error")[0]["text"]


def test_parquet_shards_and_megatron_files(
    tmp_path: Path, corpus: dict[str, Any], made: Path, run_stage: Callable[..., Path]
) -> None:
    import numpy as np
    from tokenizers import Tokenizer

    other = run_stage("curate", tmp_path / "w", curate={**corpus, "format": "parquet+megatron"}) / "output"
    assert sorted(p.name for p in (other / "pretrain" / "train").iterdir()) == ["00000.parquet"]
    rows = list(documents(other, "train"))
    assert [(r["id"], r["text"]) for r in rows] == [(r["id"], r["text"]) for r in documents(made, "train")]
    tokenizer = Tokenizer.from_file(str(other / "tokenizer" / "tokenizer.json"))
    folder = other / "megatron" / "pretrain" / "train"
    index = (folder / "00000.idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    assert int.from_bytes(index[18:26], "little") == len(rows)
    stored = np.fromfile(folder / "00000.bin", dtype=np.uint16)
    first = tokenizer.encode(rows[0]["text"], add_special_tokens=False).ids
    assert stored[: len(first)].tolist() == first
    end = tokenizer.token_to_id("<|endoftext|>")  # what separates documents in pre-training here
    assert stored[len(first)] == end
    assert int((stored == end).sum()) == len(rows)


def test_output_shards_are_ranges_of_one_order(
    tmp_path: Path,
    corpus: dict[str, Any],
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Many shards put together are the one shard: the shuffle does not depend on their size."""
    from pipeline.stages import curate
    from pipeline.stages.curate import shuffle

    monkeypatch.setattr(shuffle, "BATCH_BYTES", 5000)  # many batches
    monkeypatch.setattr(Step, "release", lambda *_: None)  # what is shuffled is looked at afterwards
    curate.run(load_step(write_job("curate", tmp_path / "w", curate=corpus)))
    folders = sorted((tmp_path / "w" / "state" / "finished").iterdir())
    work = shuffle.Shuffle(folders, {}, "jsonl")
    lines = b""
    for number in range(7):
        part = tmp_path / f"part{number}"
        part.mkdir()
        work.make(["pretrain.train", str(number), "7"], part)
        assert (part / "records.jsonl").stat().st_size > 0
        lines += (part / "records.jsonl").read_bytes()
    assert lines == (made / "pretrain" / "train" / "00000.jsonl").read_bytes()


def test_decontamination_against_a_users_set(
    tmp_path: Path, corpus: dict[str, Any], made: Path, run_stage: Callable[..., Path]
) -> None:
    victim = max(documents(made, "train"), key=lambda row: len(row["text"]))
    words = victim["text"].split()
    (tmp_path / "quiz.jsonl").write_text(json.dumps({"question": " ".join(words[20:45])}) + "\n")
    settings = {
        **corpus,
        "stages": [*STAGES, "decontaminate"],
        "decontaminate": schema.Decontaminate(sets=[str(tmp_path / "quiz.jsonl")], own_test=False),
    }
    other = run_stage("curate", tmp_path / "w", curate=settings) / "output"
    report = json.loads((other / "report.json").read_text())
    assert report["decontamination"]["quiz.jsonl"]["documents"] >= 1
    assert " ".join(words[20:45]) not in "\n".join(row["text"] for row in documents(other, "train"))
    counts = report["documents"]
    assert counts["raw"] == counts["kept"] + sum(counts["dropped"].values())


def test_a_classifier_without_a_gpu_is_refused(tmp_path: Path, corpus: dict[str, Any]) -> None:
    settings = {
        **corpus,
        "stages": [*STAGES, "QualityClassifier"],
        "classifiers": {"QualityClassifier": {"filter_by": ["High"]}},
    }
    process = start(write_job("curate", tmp_path / "w", curate=settings))
    process.communicate(timeout=100)
    assert process.returncode == 2
    assert "QualityClassifier is a model-based classifier" in events(tmp_path / "w", "error")[0]["text"]


def test_semantic_duplicates_by_embeddings_that_come_with_the_data(
    tmp_path: Path, run_stage: Callable[..., Path]
) -> None:
    import random

    docs = [d["text"] for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")][
        :200
    ]
    with open(tmp_path / "docs.jsonl", "w") as handle:
        for number, text in enumerate(docs):
            chance = random.Random(number % 150)  # the last fifty mean what the first fifty mean
            vector = [chance.gauss(0, 1) + (1e-3 if number >= 150 else 0) for _ in range(16)]
            handle.write(json.dumps({"id": f"n{number}", "text": text, "vector": vector}) + "\n")
    settings = {
        "sources": [
            schema.Source(path=str(tmp_path / "docs.jsonl"), id_field="id", embedding_field="vector")
        ],
        "stages": ["semantic-duplicates"],
        "semantic_duplicates": schema.SemanticDuplicates(threshold=0.99),
        "pairs": False,
        "keep_dropped": True,
    }
    made = run_stage("curate", tmp_path / "w", curate=settings) / "output"
    gone = {row["id"] for row in read(made / "dropped" / "documents.jsonl")}
    assert gone == {f"n{number}" for number in range(150, 200)}
    report = json.loads((made / "report.json").read_text())
    assert report["duplicates"]["semantic-duplicates"]["clusters"] == 50
    assert "embedding" not in next(documents(made, "train"))
