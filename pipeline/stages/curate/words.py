"""What counts as a word where texts are compared."""

from __future__ import annotations

import re

# Scripts that put no spaces between words (Thai, Lao, Burmese, Khmer, kana, Han): one
# character is a word of its own, or a whole clause would be one.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(f"[{UNSPACED}]|[^\\W{UNSPACED}]+")
# The same, and runs of punctuation as words of their own.
WORD_OR_MARKS = re.compile(rf"{WORD.pattern}|[^\w\s]+")
# Quotation marks, dashes and dots are set by programs as often as by authors.
TYPOGRAPHY = str.maketrans(
    {
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―−", "-"),
        "…": "...",
    }
)
