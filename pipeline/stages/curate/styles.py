"""Turn a summary into house style, and a summary in house style out of it.

:func:`mend` is the compliant form of what authors wrote, by rule; :func:`spoil` is a
realistic non-compliant form of the same content.  Together they make style pairs whose
two sides say the same thing.
"""

from __future__ import annotations

import re

from pipeline.stages.house_style import (
    check,
    first_word,
    gerund,
    imperative_verbs,
    sentences,
    third_person,
    third_persons,
)

SUBJECTS = re.compile(
    r"^(?:this|the|a|an)?\s*(?:\w+\s+)?(?:function|method|class|routine|property|module|decorator|helper)\s+"
    r"(?:that\s+|which\s+|to\s+|for\s+|is used to\s+|can be used to\s+)?",
    re.IGNORECASE,
)
SECOND_VERB = re.compile(r"\b(and|or) (\w+s)\b")
GERUNDS_KNOWN: dict[str, str] = {}
WAYS = (
    "third person", "third person", "third person", "third person",
    "subject", "subject", "no full stop", "no full stop",
    "signature", "gerund", "two sentences", "two lines",
)  # fmt: skip


def mend(summary: str, kind: str) -> str | None:
    """The same content in house style, or None where no rule leads there."""
    text = summary.strip()
    if len(sentences(text)) > 1 or "->" in text:
        return None
    text = text.rstrip(" .;,:!") + "."
    if not check(text):
        return text
    body = SUBJECTS.sub("", text)
    word = first_word(body)
    base = third_persons().get(word.lower()) or _gerunds().get(word.lower())
    if base is None and word.lower() in imperative_verbs() and body != text:
        base = word.lower()
    if base is not None:
        rest = body[len(word) :]
        # "Computes and returns" -> "Compute and return"
        rest = SECOND_VERB.sub(lambda m: f"{m[1]} {third_persons().get(m[2], m[2])}", rest, count=1)
        mended = base.capitalize() + rest
    elif word.lower() in ("a", "an", "the"):
        verb = "Represent" if kind == "class" else "Describe" if kind in ("module", "document") else "Return"
        mended = f"{verb} {text[0].lower()}{text[1:]}"
    else:
        return None
    return mended if not check(mended) else None


def spoil(summary: str, kind: str, name: str, arguments: list[str], choice: int) -> str | None:
    """A non-compliant form of a summary in house style; ``choice`` picks the way.

    The ways stand in :data:`WAYS` about as often as real documentation shows them.
    """
    way = WAYS[choice % len(WAYS)]
    verb = first_word(summary)
    rest = summary[len(verb) :]
    if way == "third person":
        spoilt = third_person(verb.lower()).capitalize() + rest
    elif way == "subject":
        noun = kind if kind in ("class", "method", "function", "module") else "entry"
        spoilt = f"This {noun} {third_person(verb.lower())}{rest}"
    elif way == "no full stop":
        spoilt = summary.rstrip(".")
    elif way == "signature":
        spoilt = f"{name.rsplit('.', 1)[-1]}({', '.join(arguments[:4])}) -> {summary}"
    elif way == "gerund":
        spoilt = gerund(verb.lower()).capitalize() + rest
    elif way == "two sentences":
        spoilt = f"{summary} See the notes below."
    else:
        words = summary.split()
        half = len(words) // 2
        spoilt = " ".join(words[:half]) + "\n" + " ".join(words[half:])
    return spoilt if check(spoilt) else None


def _gerunds() -> dict[str, str]:
    if not GERUNDS_KNOWN:
        GERUNDS_KNOWN.update({gerund(verb): verb for verb in sorted(imperative_verbs())})
    return GERUNDS_KNOWN
