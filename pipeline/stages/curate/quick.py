"""Curator's filters and Unicode repair, with the same decisions in less time.

Most documents are plain ASCII, and most of Curator's filters walk over them in Python,
each splitting the text anew.  Here the words, lines and paragraphs of a document are made
once for all filters, characters are counted in C, and what cannot occur in a text is told
by one look for its marks.  Everything else is left to Curator's own method, so a filter
that is not named here works as well, at its own speed.

``RepeatingTopNGramsFilter`` is different on purpose: where two n-grams are equally
frequent Curator takes the one that a set yields first, which changes with Python's hash
seed; here it is the one that stands first in the text.

``tests/stages/core/test_quick.py`` compares every score with Curator's on real text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from typing import Any

ASCII_WORD_WITH_LETTER = re.compile(r"[^A-Za-z\s]*[A-Za-z]\S*")
DIGITS = b"0123456789"
LETTERS = bytes(range(65, 91)) + bytes(range(97, 123))
ALPHANUM = DIGITS + LETTERS + b"\n?!,."  # Curator's regex_alphanum
WHITE = b"\t\n\r\b "  # Curator's white_space_list
BRACKETS = b"{}[]()"
# Printable ASCII and the white space that ftfy keeps, without "&", which may begin an entity.
UNTOUCHED = bytes(c for c in range(0x20, 0x7F) if c != ord("&")) + b"\t\n\f"

Score = Callable[["Text"], Any]


class Text:
    """One document and its parts, made when first asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.ascii = text.isascii()

    @cached_property
    def words(self) -> list[str]:
        """Separated by white space."""
        return self.text.split()

    @cached_property
    def lines(self) -> list[str]:
        """Lines with something in them (Curator's "sentences")."""
        return [line for line in self.text.split("\n") if line and not line.isspace()]

    @cached_property
    def paragraphs(self) -> list[str]:
        """Separated by an empty line."""
        return self.text.split("\n\n")

    @cached_property
    def lowered(self) -> str:
        """In lower case."""
        return self.text.lower()

    @cached_property
    def data(self) -> bytes:
        """As UTF-8."""
        return self.text.encode("utf-8", "replace")

    def count(self, characters: bytes) -> int:
        """How many of these ASCII characters the text holds."""
        return len(self.data) - len(self.data.translate(None, characters))

    def ngrams(self, n: int) -> list[tuple[str, ...]]:
        """Runs of ``n`` words."""
        return list(zip(*(self.words[start:] for start in range(n)), strict=False))


def score_function(found: Any) -> Score:
    """A function with the scores of a Curator filter's ``score_document``."""
    make = QUICK.get(type(found).__name__)
    splitter = getattr(found, "_word_splitter", None)
    # Chinese and Japanese are split into words by libraries of their own.
    if make is not None and (splitter is None or splitter.__name__ == "default_splitter"):
        return make(found)
    return lambda text: found.score_document(text.text)


def modify_function(modifier: Any) -> Callable[[str], str]:
    """A function with the results of a Curator modifier's ``modify_document``."""
    if type(modifier).__name__ == "UnicodeReformatter" and not modifier.config.fix_line_breaks:
        repair = modifier.modify_document

        def quick(text: str) -> str:
            if text.isascii() and not text.encode().translate(None, UNTOUCHED):
                return text
            return str(repair(text))

        return quick
    return lambda text: str(modifier.modify_document(text))


def _share_of(characters: bytes, else_: bool = False) -> Callable[[Any], Score]:
    def make(found: Any) -> Score:
        def score(text: Text) -> float:
            if else_ and not text.ascii:
                return float(found.score_document(text.text))
            return text.count(characters) / len(text.text)

        return score

    return make


def _alphanum(found: Any) -> Score:
    def score(text: Text) -> float:
        length = len(text.text)
        return (length - text.count(ALPHANUM)) / length

    return score


def _parentheses(found: Any) -> Score:
    def score(text: Text) -> float:
        more = 0 if text.ascii else text.text.count("⟨") + text.text.count("⟩")
        return (text.count(BRACKETS) + more) / len(text.text)

    return score


def _symbols(found: Any) -> Score:
    from nemo_curator.stages.text.utils.constants import ellipsis_marks, regex_hash

    def score(text: Text) -> float:
        whole = text.text
        if (
            "#" not in whole
            and "..." not in whole
            and (text.ascii or ("…" not in whole and "-»" not in whole))
        ):
            return 0 / len(text.words)
        count = 0
        for word in text.words:
            if word in ellipsis_marks or len(regex_hash.findall(word)) / len(word) > 0.5:
                count += 1
        return count / len(text.words)

    return score


def _urls(found: Any) -> Score:
    def score(text: Text) -> float:
        return 0.0 if text.text and "http" not in text.text else float(found.score_document(text.text))

    return score if _default_url(found) else lambda text: found.score_document(text.text)


def _porn(found: Any) -> Score:
    return lambda text: 0 if "porn" not in text.text else found.score_document(text.text)


def _default_url(found: Any) -> bool:
    from nemo_curator.stages.text.utils.constants import regex_url

    return found._url_regex is regex_url


def _bullets(found: Any) -> Score:
    def score(text: Text) -> float:
        if text.ascii:
            return 0 / len(text.lines)
        found._sentences = text.lines
        return float(found.score_document(text.text))

    return score


def _by_line(found: Any) -> Score:
    """Curator's own scoring on lines made once."""

    def score(text: Text) -> Any:
        found._sentences = text.lines
        return found.score_document(text.text)

    return score


def _by_paragraph(found: Any) -> Score:
    def score(text: Text) -> Any:
        found._paragraphs = text.paragraphs
        return found.score_document(text.text)

    return score


def _ellipsis(found: Any) -> Score:
    marks = ("...", "…", "-»", "read more")  # every mark of Curator's holds one of these

    def score(text: Text) -> float:
        if not any(mark in text.lowered for mark in marks):
            return 0 / len(text.lines)
        found._sentences = text.lines
        return float(found.score_document(text.text))

    return score


def _boilerplate(found: Any) -> Score:
    from nemo_curator.stages.text.utils.constants import policy_substrings

    marks = ("lorem ipsum", *policy_substrings)

    def score(text: Text) -> float:
        if not any(mark in text.lowered for mark in marks):
            return 0 / len(text.paragraphs)
        return float(found.score_document(text.text))

    return score


def _words(count: Callable[[list[str]], Any]) -> Callable[[Any], Score]:
    return lambda found: lambda text: count(text.words)


def _common_words(found: Any) -> Score:
    from nemo_curator.stages.text.utils.constants import common_english_words

    def score(text: Text) -> int:
        count = 0
        for word in text.words:
            if word in common_english_words:
                count += 1
                if found._stop_at_false and count >= found._cutoff:
                    return count
        return count

    return score


def _letters(found: Any) -> Score:
    from nemo_curator.stages.text.utils.constants import regex_alpha

    def score(text: Text) -> float:
        if text.ascii:
            return len(ASCII_WORD_WITH_LETTER.findall(text.text)) / len(text.words)
        return sum(1 for word in text.words if regex_alpha.search(word)) / len(text.words)

    return score


def _top_ngrams(found: Any) -> Score:
    n, most = found._n, found._max_ratio

    def score(text: Text) -> float:
        if len(text.words) < n:
            return float(most)
        counts = Counter(text.ngrams(n))
        best = " ".join(
            max(counts.items(), key=lambda each: each[1])[0]
        )  # the first of equals: Counter keeps the order
        length = len(text.text)
        return (length - len(text.text.replace(best, ""))) / length

    return score


def _duplicate_ngrams(found: Any) -> Score:
    n, most = found._n, found._max_ratio

    def score(text: Text) -> float:
        if len(text.words) < n:
            return float(most)
        ngrams = text.ngrams(n)
        if len(set(ngrams)) == len(ngrams):
            return 0 / len(text.text)
        found._ngrams = ngrams
        try:
            return float(found.score_document(text.text))
        finally:
            found._ngrams = None

    return score


def _mean_length(words: list[str]) -> float:
    return sum(map(len, words)) / len(words)


QUICK: dict[str, Callable[[Any], Score]] = {
    "NonAlphaNumericFilter": _alphanum,
    "NumbersFilter": _share_of(DIGITS, else_=True),
    "AlphaFilter": _share_of(LETTERS, else_=True),
    "WhiteSpaceFilter": _share_of(WHITE),
    "ParenthesesFilter": _parentheses,
    "SymbolsToWordsFilter": _symbols,
    "UrlsFilter": _urls,
    "PornographicUrlsFilter": _porn,
    "BulletsFilter": _bullets,
    "PunctuationFilter": _by_line,
    "EllipsisFilter": _ellipsis,
    "RepeatedLinesFilter": _by_line,
    "RepeatedLinesByCharFilter": _by_line,
    "RepeatedParagraphsFilter": _by_paragraph,
    "RepeatedParagraphsByCharFilter": _by_paragraph,
    "BoilerPlateStringFilter": _boilerplate,
    "WordCountFilter": _words(len),
    "LongWordFilter": _words(lambda words: max(map(len, words))),
    "MeanWordLengthFilter": _words(_mean_length),
    "CommonEnglishWordsFilter": _common_words,
    "WordsWithoutAlphabetsFilter": _letters,
    "RepeatingTopNGramsFilter": _top_ngrams,
    "RepeatingDuplicateNGramsFilter": _duplicate_ngrams,
}
