"""Evaluation data out of training documents, on real text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.schema import Decontaminate
from pipeline.stages.curate.decontaminate import Grams, clean
from pipeline.stages.curate.harvest import package_sources, read_docstrings

SETTINGS = Decontaminate()
QUESTION = (
    "Which of the seven bridges of Königsberg did Leonhard Euler cross twice on his morning walk in 1736?"
)
BEFORE = "Graph theory has a long past. " * 20
AFTER = "It is taught in schools today. " * 20


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = [d["text"] for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    return [text for text in found if len(text.split()) > 80][:300]


def grams_of(*texts: str) -> Grams:
    return Grams.of([("quiz", texts)], SETTINGS)


def test_a_document_is_cut_around_the_match() -> None:
    text = f"{BEFORE}A riddle: {QUESTION} {AFTER}"
    cleaned = clean(text, grams_of(QUESTION), SETTINGS)
    assert cleaned.reason is None
    assert len(cleaned.pieces) == 2
    assert text.startswith(cleaned.pieces[0])
    assert text.rstrip().endswith(cleaned.pieces[1])
    assert all(piece.endswith(".") and "Königsberg" not in piece for piece in cleaned.pieces)
    removed = len(text) - sum(map(len, cleaned.pieces))
    assert len(QUESTION) + 2 * SETTINGS.remove_characters <= removed < len(QUESTION) + 500


def test_words_count_not_their_dress() -> None:
    dressed = QUESTION.upper().replace(" ", "\n ").replace("?", "!")
    assert clean(f"{BEFORE}{dressed} {AFTER}", grams_of(QUESTION), SETTINGS).owners == {0}
    assert clean(f"{BEFORE} Which of the seven bridges {AFTER}", grams_of(QUESTION), SETTINGS).owners == set()


def test_too_little_left_and_too_many_matches() -> None:
    short = clean(f"Short. {QUESTION} End.", grams_of(QUESTION), SETTINGS)
    assert (short.pieces, short.reason) == ([], "too little is left beside evaluation data")
    spaced = (QUESTION + " " + BEFORE) * 12
    assert clean(spaced, grams_of(QUESTION), SETTINGS).reason == "more than 10 matches with evaluation data"


def test_short_entries_match_whole() -> None:
    entry = "the quick brown fox jumps over the lazy dog"  # nine words
    assert clean(f"{BEFORE} {entry} {AFTER}", grams_of(entry), SETTINGS).owners == {0}
    assert Grams.of([("s", ["seven words are far too few here"])], SETTINGS).tables == {}


def test_no_ngram_of_the_evaluation_data_is_left(texts: list[str]) -> None:
    """The definition, by brute force: no 13 words in a row of the test stand in what is left."""
    held_out, training = texts[:30], texts[30:]
    contaminated = [
        f"{a}\n{BEFORE}\n{b[len(b) // 3 :]}\n{AFTER}" for a, b in zip(training, held_out * 9, strict=False)
    ]
    grams = Grams.of([("test", held_out)], SETTINGS)

    def thirteen(text: str) -> set[tuple[str, ...]]:
        import re

        words = re.findall(r"\w+", text.lower())
        return set(zip(*(words[i:] for i in range(13)), strict=False))

    forbidden = set().union(*(thirteen(text) for text in held_out))
    hit = 0
    for text in contaminated:
        cleaned = clean(text, grams, SETTINGS)
        hit += bool(cleaned.owners)
        assert bool(cleaned.owners) == bool(thirteen(text) & forbidden)
        assert not any(thirteen(piece) & forbidden for piece in cleaned.pieces)
    assert hit == len(contaminated)


def test_common_ngrams_are_forgotten_and_files_keep_all(tmp_path: Path) -> None:
    grams = Grams.of([("a", [QUESTION]), ("b", [BEFORE, QUESTION])], SETTINGS)
    assert grams.sizes() == Counter({"a": 6, "b": 6})  # a gram belongs to the first set that has it
    common = np.array([next(h for _, _, h, _ in grams.matches(BEFORE))], dtype=np.uint64)
    grams.without(common).save(tmp_path / "g.npz")
    assert Grams.load(tmp_path / "g.npz").sizes() == Counter({"a": 6, "b": 5})


def test_scripts_without_spaces_between_words() -> None:
    question = "市议会星期二开会讨论河上的新桥计划,大多数与会者都表示支持这项工程"
    settings = Decontaminate(remove_characters=0, min_characters=5)
    grams = Grams.of([("quiz", [question, "太短了"])], settings)
    assert grams.short == [1]
    before, after = "前面还有一段与此无关的文字。" * 3, "后面也有一段与此无关的文字。" * 3
    cleaned = clean(before + question + after, grams, settings)
    assert cleaned.owners == {0}
    assert not any(question[5:20] in piece for piece in cleaned.pieces)
