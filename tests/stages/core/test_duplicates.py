"""Duplicates: against exact Jaccard similarity, against datasketch, and by policy."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import events, start, write_job

from pipeline import schema
from pipeline.stages.curate.duplicates import choose, clusters, find, on_gpu, shingles
from pipeline.stages.curate.duplicates.bands import similar_pairs
from pipeline.stages.curate.duplicates.measures import ContentKeys, Signatures, Standing
from pipeline.stages.curate.duplicates.minhash import signature_rows
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.curate.shards import DOCUMENTS, write_shard

NEAR = schema.NearDuplicates()


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [d["text"] for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    return [text for text in dict.fromkeys(found) if len(text.split()) > 60][:400]


def edited(text: str, rate: float, seed: int) -> str:
    chance = random.Random(seed)
    return " ".join(f"edit{chance.randrange(10**6)}" if chance.random() < rate else w for w in text.split())


def jaccard(one: str, two: str) -> float:
    a, b = set(shingles(one, NEAR.ngram)), set(shingles(two, NEAR.ngram))
    return len(a & b) / len(a | b)


def test_precision_and_recall_on_planted_duplicates(texts: list[str]) -> None:
    """Truth is the exact Jaccard similarity of the shingles; the estimate errs near the threshold only."""
    originals = len(texts)
    corpus, plan = list(texts), []
    for rate in (0.0, 0.005, 0.01, 0.02, 0.05, 0.2):
        for index in range(originals):
            plan.append((index, len(corpus)))
            corpus.append(edited(texts[index], rate, index))
    rows = signature_rows(corpus, NEAR.ngram, NEAR.permutations)
    pairs = set()
    for one, two, _ in similar_pairs(rows, NEAR.bands, NEAR.threshold, memory_mb=64):
        pairs.update(zip(one.tolist(), two.tolist(), strict=True))
    clear = {"true": [0, 0], "false": [0, 0]}
    for index, copy in plan:
        likeness = jaccard(corpus[index], corpus[copy])
        if likeness >= 0.9:
            clear["true"][0] += 1
            clear["true"][1] += (index, copy) in pairs
        elif likeness < 0.7:
            clear["false"][0] += 1
            clear["false"][1] += (index, copy) in pairs
    assert clear["true"][0] > 800
    assert clear["true"][1] / clear["true"][0] > 0.98  # recall
    assert clear["false"][0] > 500
    assert clear["false"][1] / clear["false"][0] < 0.01
    # Precision over all pairs found, planted or not.
    wrong = sum(jaccard(corpus[a], corpus[b]) < 0.65 for a, b in pairs)
    assert wrong / len(pairs) < 0.01


def test_signatures_estimate_as_well_as_datasketch(texts: list[str]) -> None:
    """The standard error of a signature's estimate is sqrt(J (1 - J) / k)."""
    from datasketch import MinHash

    def sketch(text: str) -> Any:
        made = MinHash(num_perm=NEAR.permutations, seed=1)
        made.update_batch([shingle.encode() for shingle in shingles(text, NEAR.ngram)])
        return made

    ours, theirs = [], []
    for index, text in enumerate(texts[:200]):
        other = edited(text, 0.03, index)
        truth = jaccard(text, other)
        error = np.sqrt(max(truth * (1 - truth), 1e-4) / NEAR.permutations)
        rows = signature_rows([text, other], NEAR.ngram, NEAR.permutations)
        ours.append((float((rows[0] == rows[1]).mean()) - truth) / error)
        theirs.append((sketch(text).jaccard(sketch(other)) - truth) / error)
    for scores in (ours, theirs):
        assert abs(np.mean(scores)) < 0.35  # unbiased: 200 draws, five standard errors
        assert 0.6 < np.std(scores) < 1.2  # a little below 1: the shingles of a text are finitely many
    assert max(abs(s) for s in ours) < 5


def test_memory_never_changes_what_is_found(texts: list[str]) -> None:
    rows = signature_rows([*texts, *(edited(t, 0.01, i) for i, t in enumerate(texts))], 5, 128)
    # So small a memory that the keys are taken in many parts: 32 bytes a document, 10 parts.
    whole = clusters(rows, 16, 0.8)
    from pipeline.stages.curate.duplicates.clusters import Clusters

    joined = Clusters(len(rows))
    import pipeline.stages.curate.duplicates.bands as bands

    parts = 10
    for band in range(16):
        for part in range(parts):
            index, keys = bands._keys(rows, band * 8, 8, part, parts)
            for one, two in bands._candidates(index, keys):
                alike = (rows[one] == rows[two]).mean(axis=1) >= 0.8
                joined.join(one[alike], two[alike])
    assert joined.labels().tolist() == whole
    assert len(set(whole)) < len(rows) * 0.6


def corpus_of(folder: Path, rows: list[dict[str, Any]], size: int) -> find.Corpus:
    measures = [Standing(), ContentKeys(True), Signatures("signatures", 5, 128)]
    shards = []
    for first in range(0, len(rows), size):
        shard = folder / f"{first:05d}"
        shard.mkdir(parents=True)
        write_shard(shard, rows[first : first + size], {}, measures)
        shards.append(shard)
    return find.Corpus(shards)


def removed(folder: Path) -> list[int]:
    import pyarrow.parquet as pq

    return list(pq.read_table(folder / find.REMOVALS)["id"].to_pylist())


def test_exact_duplicates_and_the_one_that_stays(tmp_path: Path, texts: list[str]) -> None:
    rows = [
        {"number": n * 256, "id": str(n), "text": text, "score": score}
        for n, (text, score) in enumerate(
            [
                (texts[0], 1.0),
                (texts[1], 0.0),
                (texts[0].upper(), 3.0),
                (texts[0] + "  \n", 2.0),
                (texts[2], 0.0),
            ]
        )
    ]
    corpus = corpus_of(tmp_path / "c", rows, 2)
    for which, gone in (("first", [2, 3]), ("longest", [0, 2]), ("best-score", [0, 3])):
        found = find.exact(corpus, which, 64, tmp_path / which)
        assert removed(tmp_path / which) == [n * 256 for n in gone], which
        assert (found.clusters, found.removed, found.sizes) == (1, 2, {"3": 1})


def test_near_duplicates_are_reported_with_examples(tmp_path: Path, texts: list[str]) -> None:
    rows = [
        {"number": n, "id": f"d{n}", "text": t}
        for n, t in enumerate([*texts[:20], edited(texts[3], 0.01, 1)])
    ]
    corpus = corpus_of(tmp_path / "c", rows, 6)
    found = find.near(corpus, 16, 0.8, "first", 64, tmp_path / "out", tmp_path / "scratch")
    assert removed(tmp_path / "out") == [20]
    (example,) = found.examples
    assert example["kept"]["id"] == "d3"
    assert example["removed"][0]["id"] == "d20"
    assert 0.8 <= example["removed"][0]["similarity"] < 1


def test_an_empty_corpus_has_no_duplicates(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "c", [], 2)
    assert find.exact(corpus, "first", 64, tmp_path / "a").removed == 0
    assert find.near(corpus, 16, 0.8, "first", 64, tmp_path / "b", tmp_path / "s").removed == 0


def test_policies_prefer_the_first_of_equals() -> None:
    labels = np.array([0, 0, 2, 0, 2])
    assert choose(labels, "longest", np.array([5, 9, 1, 9, 1]), None).tolist() == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert choose(labels, "best-score", None, np.array([np.nan, 1, 2, 0, 2])).tolist() == [
        False, True, True, False, False,
    ]  # fmt: skip


def test_components_of_curators_gpu_workflow_become_labels(tmp_path: Path) -> None:
    """Files in the workflow's formats: its ids go by the order in which files happened to be read."""
    import pandas as pd
    from nemo_curator.stages.deduplication.id_generator import CURATOR_DEDUP_ID_STR, IdGeneratorBase

    shards = [tmp_path / name for name in ("00000", "00001", "00002")]
    register = IdGeneratorBase()
    firsts = {
        shard: register.register_batch([str(shard / DOCUMENTS)], count)
        for shard, count in ((shards[2], 4), (shards[0], 3), (shards[1], 2))
    }
    register.to_disk(str(tmp_path / "ids.json"))
    starts = np.array([0, 3, 5, 9])

    def identifier(shard: int, place: int) -> int:
        return firsts[shards[shard]] + place

    components = tmp_path / "components"
    assert on_gpu.read_labels(shards, starts, components, tmp_path / "ids.json").tolist() == list(range(9))
    components.mkdir()
    members = [(2, 3, 77), (0, 1, 77), (1, 0, 77), (2, 0, 5), (2, 1, 5), (0, 2, 9)]
    pd.DataFrame(
        {
            CURATOR_DEDUP_ID_STR: [identifier(shard, place) for shard, place, _ in members],
            on_gpu.GROUP: [group for *_, group in members],
        }
    ).to_parquet(components / "part.parquet")
    found = on_gpu.read_labels(shards, starts, components, tmp_path / "ids.json")
    assert found.tolist() == [0, 1, 2, 1, 4, 5, 5, 7, 1]


def test_curators_gpu_workflow_is_refused_without_a_gpu(tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text('{"text": "some words of a document"}\n')
    settings = {
        "sources": [schema.Source(path=str(tmp_path / "docs.jsonl"))],
        "stages": ["near-duplicates"],
        "near_duplicates": schema.NearDuplicates(engine="curator-gpu"),
    }
    process = start(write_job("curate", tmp_path / "w", curate=settings))
    process.communicate(timeout=100)
    assert process.returncode == 2
    said = events(tmp_path / "w", "error")[0]["text"]
    assert "curator-gpu needs" in said
    assert "Use engine: rensa" in said


def test_near_duplicates_in_scripts_without_spaces() -> None:
    chance = random.Random(5)
    alphabet = [chr(code) for code in range(0x4E00, 0x4E00 + 2000)]
    originals = ["".join(chance.choices(alphabet, k=350)) for _ in range(60)]

    def changed(text: str) -> str:
        places = set(chance.sample(range(len(text)), 4))
        return "".join("字" if place in places else c for place, c in enumerate(text))

    corpus = [*originals, *map(changed, originals)]
    found = clusters(signature_rows(corpus, NEAR.ngram, NEAR.permutations), NEAR.bands, NEAR.threshold)
    assert sum(found[60 + place] == place for place in range(60)) >= 57
    assert len(set(found)) >= 60


def test_punctuation_tells_texts_apart() -> None:
    """``operator.le`` is no duplicate of ``operator.lt``, and code differs by its marks."""
    texts = [
        "Same as a <= b.",
        "Same as a < b.",
        "def f(a, b):\n    return a[b] + a.b(b) - 1\n",
        "def f(a, b):\n    return a(b) * a[b(b)] / 1\n",
        "def f(a, b) :\n  return a[b]  +  a.b(b) - 1",
        "It is “so” – quite so – said he, and it’s so… for all who heard it that day.",
        "It is \"so\" - quite so - said he, and it's so... for all who heard it that day.",
    ]  # fmt: skip
    rows = signature_rows(texts, NEAR.ngram, NEAR.permutations)

    def likeness(one: int, two: int) -> float:
        return float((rows[one] == rows[two]).mean())

    assert likeness(0, 1) < 0.2
    assert likeness(2, 3) < 0.5
    assert likeness(5, 6) == 1.0
    plain = signature_rows(texts, NEAR.ngram, NEAR.permutations, marks=False)
    assert (plain[0] == plain[1]).all()  # for the split they are alike


def chain(versions: int) -> list[str]:
    """Versions of one text, each an edit away from the one before: the ends have nothing in common."""
    words = [f"word{number}" for number in range(200 + 12 * versions)]
    return [" ".join(words[12 * version : 12 * version + 200]) for version in range(versions)]


@pytest.mark.parametrize("which", ["first", "longest"])
def test_what_goes_is_alike_to_one_that_stays(tmp_path: Path, texts: list[str], which: str) -> None:
    """A chain of alike texts is no cluster: its ends have nothing in common, and both stay."""
    made = [*chain(40), *texts[:60], *(edited(text, 0.01, n) for n, text in enumerate(texts[:60]))]
    random.Random(4).shuffle(made)
    rows = [{"number": n, "id": f"d{n}", "text": text} for n, text in enumerate(made)]
    corpus = corpus_of(tmp_path / "c", rows, 50)
    signed = signature_rows(made, NEAR.ngram, NEAR.permutations)
    found = find.near(corpus, NEAR.bands, 0.8, which, 64, tmp_path / "out", tmp_path / "scratch")
    gone = set(removed(tmp_path / "out"))
    stays = [number for number in range(len(made)) if number not in gone]
    for number in gone:
        assert max(float((signed[number] == signed[other]).mean()) for other in stays) >= 0.8
    assert 40 < len(gone) < 100
    joined = find.joined_labels(corpus.on_disk("signatures", tmp_path / "s"), NEAR.bands, 0.8, 64)
    assert len(gone) < len(made) - len(set(joined.tolist()))  # the chain was one cluster once
    assert found.removed == len(gone)
    for example in found.examples:
        assert all(each["similarity"] >= 0.8 for each in example["removed"])


def test_the_memory_for_pairs_never_changes_what_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    module = sys.modules["pipeline.stages.curate.duplicates.clusters"]
    chance = np.random.default_rng(2)
    for _ in range(10):
        ends = np.sort(chance.integers(0, 150, (400, 2)), axis=1)
        one, two = ends[ends[:, 0] < ends[:, 1]].T
        share, rank = ((one * 7 + two) % 10 / 10).astype(np.float32), chance.permutation(150)

        def pairs(among: Any, one: Any = one, two: Any = two, share: Any = share) -> Any:
            for first in range(0, len(one), 60):
                part = slice(first, first + 60)
                kept = among[one[part]] & among[two[part]]
                yield one[part][kept], two[part][kept], share[part][kept]

        outcomes = []
        for least in (1 << 20, 16):
            monkeypatch.setattr(module, "LEAST_PAIRS", least)
            monkeypatch.setattr(module, "EDGE_BYTES", 1 << 60)
            outcomes.append([each.tolist() for each in module.stars(150, pairs, rank, 64)])
        assert outcomes[0] == outcomes[1]
        keeper = outcomes[0][0]
        alike = {frozenset(pair) for pair in zip(one.tolist(), two.tolist(), strict=True)}
        for number, other in enumerate(keeper):
            assert keeper[other] == other
            assert other == number or frozenset((number, other)) in alike
        staying = [number for number, other in enumerate(keeper) if number == other]
        assert not any(frozenset((a, b)) in alike for a in staying for b in staying if a != b)
