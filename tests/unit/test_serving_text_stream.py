"""Streaming text out of tokens: whole characters, and never a piece of a stop word."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

SOURCE = Path(__file__).resolve().parents[2] / "deploy/triton/contract/text_stream.py"
_spec = importlib.util.spec_from_file_location("text_stream", SOURCE)
assert _spec
assert _spec.loader
_module: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)


def decode(tokens: list[int]) -> str:
    """A tokenizer with one token per byte."""
    return bytes(tokens).decode("utf-8", "replace")


def stream(text: str, stop_words: list[str], sizes: list[int]) -> list[str]:
    """The pieces that come out when the text's bytes arrive in groups of these sizes."""
    made, tokens, pieces = _module.TextStream(decode, stop_words), list(text.encode()), []
    while tokens:
        size = sizes[len(pieces) % len(sizes)]
        pieces.append(made.add(tokens[:size]))
        tokens = tokens[size:]
    return [*pieces, made.finish()]


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


def test_text_comes_as_early_as_it_can() -> None:
    assert stream("abc", [], [1]) == ["a", "b", "c", ""]
    assert stream("xSTy", ["STOP"], [1]) == ["x", "", "", "STy", ""]
    assert stream("é", [], [1]) == ["", "é", ""]


def test_a_broken_last_character_is_shown_as_such() -> None:
    made = _module.TextStream(decode, [])
    assert made.add([0xE6]) == ""
    assert made.finish() == "\ufffd"
