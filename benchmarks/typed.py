"""What a benchmark was called with, as its table tells it."""

from __future__ import annotations


def typed(module: str, words: list[str]) -> str:
    """The command line, without the places of this machine."""
    left = [word for word, before in zip(words, ["", *words], strict=False) if "--runs" not in (word, before)]
    return " ".join([f"python -m benchmarks.{module}", *(f'"{w}"' if "|" in w else w for w in left)])
