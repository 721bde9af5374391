"""Streaming text out of tokens: whole characters, and never a piece of a stop word."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[2] / "deploy/triton/contract/text_stream.py"
_spec = importlib.util.spec_from_file_location("text_stream", SOURCE)
assert _spec
assert _spec.loader
_module: Any = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = _module  # where dataclasses look for it
_spec.loader.exec_module(_module)


def decode(tokens: list[int]) -> str:
    """A tokenizer with one token per byte."""
    return bytes(tokens).decode("utf-8", "replace")


def shown(text: str, stop_words: list[str], sizes: list[int]) -> list[tuple[str, int]]:
    """Text and number of tokens of the pieces that come out when the text's bytes arrive in groups of these sizes."""
    made, tokens, pieces = _module.TextStream(decode, stop_words), list(text.encode()), []
    while tokens:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(made.add(tokens[:size]))
        tokens = tokens[size:]
    return [(each.text, each.tokens) for each in [*pieces, made.finish()]]


def stream(text: str, stop_words: list[str], sizes: list[int]) -> list[str]:
    """The text of the pieces alone."""
    return [each for each, _ in shown(text, stop_words, sizes)]


@given(
    st.text(alphabet="abé漢😀 ", max_size=30),
    st.lists(st.text(alphabet="abé漢", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_the_text_ends_before_the_first_stop_word(text: str, words: list[str], sizes: list[int]) -> None:
    got = "".join(stream(text, words, sizes))
    assert text.startswith(got)
    assert not any(word in got for word in words)
    if not any(word in text for word in words):
        assert got == text
    else:
        assert any(text[len(got) :].startswith(word) for word in words)


@given(
    st.text(alphabet="abé漢😀 ", max_size=30),
    st.lists(st.text(alphabet="abé漢", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
)
def test_the_tokens_that_are_told_are_those_of_the_text(
    text: str, words: list[str], sizes: list[int]
) -> None:
    """With one token per byte, as many as the text has bytes, whatever a stop word cut off; at every piece of it."""
    pieces = shown(text, words, sizes)
    for place in range(len(pieces)):
        so_far = pieces[: place + 1]
        assert sum(count for _, count in so_far) == len("".join(piece for piece, _ in so_far).encode())


def test_a_token_that_is_shown_in_part_is_told() -> None:
    made = _module.TextStream(
        lambda tokens: "".join(("abST", "OPcd", "ef")[token] for token in tokens), ["STOP"]
    )
    assert (made.add([0]).text, made.add([1, 2]).text, made.stopped) == ("ab", "", True)
    made = _module.TextStream(
        lambda tokens: "".join(("abST", "OPcd", "ef")[token] for token in tokens), ["STOP"]
    )
    assert made.add([0, 1, 2]).tokens == 1


def test_tokens_that_spell_nothing_are_told() -> None:
    """Special tokens that nobody asked to end at, with the text that follows, or at the end."""
    made = _module.TextStream(lambda tokens: "".join("ab"[token] for token in tokens if token < 2), [])
    got = [made.add([each]) for each in (7, 0, 7, 1, 7)]
    assert [(each.text, each.tokens) for each in got] == [("", 0), ("a", 2), ("", 0), ("b", 2), ("", 0)]
    assert (made.finish().tokens, made.finish().tokens) == (1, 0)


def test_text_comes_as_early_as_it_can() -> None:
    assert stream("abc", [], [1]) == ["a", "b", "c", ""]
    assert stream("xSTy", ["STOP"], [1]) == ["x", "", "", "STy", ""]
    assert stream("é", [], [1]) == ["", "é", ""]


def test_a_broken_last_character_is_shown_as_such() -> None:
    made = _module.TextStream(decode, [])
    assert made.add([0xE6]).text == ""
    assert (made.finish().text, made.finish().text) == ("\ufffd", "")


def test_a_part_of_an_answer_is_told_by_its_tokens() -> None:
    def told(text: str, tokens: list[str]) -> list[str]:
        parts = list(_module.portions(text, len(tokens), tokens))
        assert [count for _, count in parts] == [1] * len(tokens)
        assert "".join(part for part, _ in parts) == text
        return [part for part, _ in parts]

    assert told("Use it.", ["Use", " it", "."]) == ["Use", " it", "."]
    assert told(" Use it.", ["Use", "it", "."]) == [" Use", " it", "."]  # SentencePiece
    assert told("é it", ["\ufffd", "\ufffd", "it"]) == ["", "", "é it"]
    assert told("né it.", ["n", "\ufffd", "\ufffd", " it", "."]) == ["n", "", "", "é it", "."]
    assert told("abab", ["ab", "", "ab"]) == ["ab", "", "ab"]
    assert list(_module.portions("two", 2, [])) == [("two", 2)]
    assert list(_module.portions("one", 1, ["one"])) == [("one", 1)]
