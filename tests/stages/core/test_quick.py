"""The quicker filters decide as Curator's own do, on real text and on strange text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pipeline.curation import catalogue
from pipeline.stages.curate.catalogue import classes, describe
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.curate.quick import QUICK, Text, modify_function, score_function

STRANGE = [
    "",
    " ",
    "\n\n\n",
    "#",
    "## ## #a#b # ...",
    "wait... [...] and (…) … read more",
    "READ MORE..\nRead more\nplain line",
    "• one\n‣ two\n  ● three\nfour",
    "naïve – 東京 мир ١٢٣ ⟨x⟩ {a} [b]",
    "see https://example.org/a_(b)?c=d and http://x.y\nno more",
    "http://porn.example.org here",
    "the THE be of and",
    "a b a b a b a b",
    "one two three one two three one two three one two three",
    "x " * 400,
    "word" * 400,
    "terms of use apply\n\nlorem\n\nuse cookies",
    "lorem ipsum dolor",
    "tab\tand\rreturn\band space",
    "12 34 5.6e-7 0x1F",
    "\x1c\x1d split \x85 odd\u2003spaces\u00a0here",
    "same line\nsame line\nother\n\nsame line\n\nsame line",
    "A sentence ends.\nAnother does not\n'Quoted'",
    "don't stop-word a.b.c -- ** __init__ 4x4",
    "ﬁrst ligature &amp; caf\u00c3\u00a9 \x1b[31mred\x1b[0m \x07bell",
    "Zdravo svete, ovo je \u0161uma. \ud7ff",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    found = []
    for package in ("networkx", "statsmodels"):
        for module, file in package_sources(package):
            found += [document["text"] for document in read_docstrings(module, file, package)]
    assert len(found) > 5000
    return found[::2] + STRANGE


def outcome(score: Callable[[Any], Any], text: Any) -> Any:
    try:
        return score(text)
    except Exception as error:
        return type(error).__name__


def curators_top(found: Any, text: str, score: float) -> bool:
    """Whether a score is one that Curator's filter may give: of any of the most frequent n-grams."""
    words = text.strip().split()
    ngrams = Counter(zip(*(words[i:] for i in range(found._n)), strict=False))
    most = max(ngrams.values())
    possible = {
        (len(text) - len(text.replace(" ".join(g), ""))) / len(text) for g, c in ngrams.items() if c == most
    }
    return score in possible


def test_every_quick_filter_scores_as_curator_does(texts: list[str]) -> None:
    compared = 0
    for name in QUICK:
        _, cls = classes()[name]
        for arguments in [{}, {"n": 3}, {"n": 5}] if "NGrams" in name else [{}]:
            found, plain = cls(**arguments), cls(**arguments)
            quick = score_function(found)
            for text in texts:
                ours, theirs = outcome(quick, Text(text)), outcome(plain.score_document, text)
                if name == "RepeatingTopNGramsFilter" and ours != theirs:
                    assert curators_top(found, text, ours), (name, text[:80])
                elif isinstance(ours, str) or isinstance(theirs, str):
                    # An empty text: either cannot be scored, or is not kept.
                    assert isinstance(ours, str) == isinstance(theirs, str) or not text, (name, text)
                else:
                    assert math.isclose(ours, theirs, rel_tol=1e-12), (name, text[:80])
                compared += 1
    assert compared > 50_000


def test_the_top_ngram_of_equals_is_the_first() -> None:
    _, cls = classes()["RepeatingTopNGramsFilter"]
    score = score_function(cls(n=2))
    assert score(Text("long words here cc dd")) == len("long words") / len("long words here cc dd")


def test_unicode_repair_is_the_same(texts: list[str]) -> None:
    _, cls = classes()["UnicodeReformatter"]
    for settings in ({}, {"normalization": "NFKC"}, {"uncurl_quotes": True}, {"fix_line_breaks": True}):
        plain = cls(explain=False, **settings)
        quick = modify_function(cls(explain=False, **settings))
        for text in texts if not settings else texts[-len(STRANGE) - 300 :]:
            assert quick(text) == plain.modify_document(text), repr(text[:80])


def test_every_ascii_character_is_repaired_as_curator_does() -> None:
    _, cls = classes()["UnicodeReformatter"]
    quick, plain = modify_function(cls(explain=False)), cls(explain=False)
    for code in range(128):
        for text in (f"a{chr(code)}b", f"{chr(code)}lt; x", f"a\n{chr(code)}"):
            assert quick(text) == plain.modify_document(text), code


def test_the_catalogue_is_of_the_installed_curator() -> None:
    assert catalogue() == describe(), (
        "run `python -m pipeline.stages.curate.catalogue > pipeline/curation/catalogue.json`"
    )
    kinds = Counter(entry["kind"] for entry in catalogue().values())
    assert kinds["filter"] >= 35
    assert kinds["modifier"] == 8
    assert kinds["classifier"] == 10
