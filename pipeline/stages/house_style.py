"""The house style of an answer, judged by rule: PEP 257's summary line.

An answer is in house style when it

* is one sentence on one line that ends with a full stop,
* starts with a verb in the imperative mood ("Return the norm."), and
* does not restate the signature ("norm(x, ord) -> float").

The verbs are the word list of pydocstyle, the reference implementation of PEP 257's
checks (its rule D401), and those below that it lacks and numerical documentation uses.
A first word that is not on the list counts as not imperative: the rule errs on the
strict side, for every model alike.
"""

from __future__ import annotations

import re
from functools import lru_cache

MORE_VERBS = """
abort adapt advance align analyze annotate approximate ask assemble associate attach average await balance begin bin
bind blend block bound bring broadcast carry cast center centre choose clip clone collapse color compile complete
compress concatenate consume contract convolve correct cover cross cut deal debug decide decompose decompress decrease
deduce delay demonstrate densify deserialize detach diagonalize differentiate discard discretize dispatch distribute
divide do draw duplicate edit eliminate embed emulate encounter encrypt enforce enter equalize erase escape estimate
exclude expose express factor factorize fail fall fast-forward filter fit flatten flip flush fold follow freeze gather
guess guarantee halt hash hide highlight ignore impose include increase increment index infer inform inherit inspect
install integrate interact interpolate interpret invert inverse isolate issue kill label lay leave let limit linearize
link locate lock lookup lower maintain mask maximize measure memoize minimize mirror multiply mutate narrow
negate notify offset operate optimize order organize pack partition paste patch permute place pop predict prefer
preserve press prevent profile project promote prompt propagate prune push quantize quit quote rank rasterize reach
rearrange rebuild receive recompute reconstruct recover recurse redirect reduce refine refit reformat regress reindex
reinterpret reject release remember reorder repeat rescale reserve reshape resize restart restore restrict resume
retain reverse revert rewrite rotate scale scatter schedule seek separate shift shorten shrink shuffle
shutdown sign signal simplify skip slice smooth solve sort sparsify spawn square squeeze stack stamp standardize
stream subclass subset substitute subtract suggest summarize supply support suppress switch synthesize tabulate tag
tell terminate threshold throw tile toggle tokenize touch trace track train transfer transpose traverse treat trigger
trim tune uncompress undo unify unlock unpack unregister unset unwrap upcast upgrade upsample vary visit warn
widen yield zero zip
"""
NOT_A_SENTENCE_END = re.compile(
    r"(?:\b(?i:e\.g|i\.e|etc|vs|cf|resp|approx|fig|eq|no|dr|al|incl|a\.k\.a|w\.r\.t)\.|\.\.\.|\b[A-Z]\.)$"
)
SENTENCE_END = re.compile(r"[.!?][)\"'`]*(?=\s+[A-Z`\"'(*:])")
# "List of names", "Log is taken": the first word is a noun there.
NOUN_AFTER = re.compile(r"^\S+ (?:of|is|are|was|were|has|have|that|which|whose)\b")
SIGNATURE = re.compile(r"^\s*[\w.]+\s?\([^)]*\)\s*(?:->|:|--|$|\.$)|->")


def check(answer: str) -> list[str]:
    """The rules that an answer breaks, in a fixed order; empty means house style."""
    text = answer.strip()
    if not text:
        return ["empty"]
    broken = []
    if "\n" in text:
        broken.append("more than one line")
    if not text.endswith("."):
        broken.append("no full stop")
    if len(sentences(text)) > 1:
        broken.append("more than one sentence")
    if SIGNATURE.search(text):
        broken.append("restates the signature")
    if not is_imperative(text):
        broken.append("not imperative")
    return broken


def sentences(text: str) -> list[str]:
    """Split a paragraph into sentences; abbreviations do not end one."""
    found, start = [], 0
    for match in SENTENCE_END.finditer(text):
        if not NOT_A_SENTENCE_END.search(text[: match.end()]):
            found.append(text[start : match.end()].strip())
            start = match.end()
    rest = text[start:].strip()
    return [*found, rest] if rest else found


def is_imperative(text: str) -> bool:
    """Whether the first word is a known verb in its base form, used as a verb."""
    return first_word(text).lower() in imperative_verbs() and not NOUN_AFTER.match(text)


def first_word(text: str) -> str:
    """The first word, without the punctuation around it."""
    words = text.split(maxsplit=1)
    return words[0].strip("`'\"*:,.()[]") if words else ""


@lru_cache
def imperative_verbs() -> frozenset[str]:
    """Verbs in the base form: pydocstyle's list and the additions of this module."""
    from pydocstyle.wordlists import IMPERATIVE_VERBS

    return frozenset(form for forms in IMPERATIVE_VERBS.values() for form in forms) | frozenset(
        MORE_VERBS.split()
    )


@lru_cache
def third_persons() -> dict[str, str]:
    """Third person singular to base form: ``{"returns": "return", "applies": "apply", ...}``."""
    return {third_person(verb): verb for verb in sorted(imperative_verbs())}


def third_person(verb: str) -> str:
    """The third person singular of a verb's base form."""
    if verb in ("do", "go") or verb.endswith(("s", "x", "z", "ch", "sh")):
        return verb + "es"
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + "s"


def gerund(verb: str) -> str:
    """The -ing form of a verb's base form, by the common spelling rules."""
    if verb.endswith("ie"):
        return verb[:-2] + "ying"
    if verb.endswith("e") and not verb.endswith(("ee", "ye", "oe")):
        return verb[:-1] + "ing"
    if re.fullmatch(r"[^aeiou]*[aeiou][bdgmnprt]", verb):
        return f"{verb}{verb[-1]}ing"
    return verb + "ing"
