"""Instruction and preference pairs from titled documents.

Every pair follows its document into one split.  What a document cannot give is counted
by reason, like everything that curation leaves out.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from pipeline.stages.curate.styles import mend, spoil
from pipeline.stages.curate.summaries import parameters, summary

QUESTIONS = {
    "function": "What does the function {name} do?",
    "method": "What does the method {name} do?",
    "class": "What is the class {name} for?",
    "module": "What is the module {name} for?",
    "document": "What is {name} about?",
}
PARAMETER_QUESTION = "What is the parameter {parameter} of {name}?"
PARAMETER_SHARE = 4  # one documented function in so many also gives a question about a parameter
SAME_ANSWER = 5  # at most so many training pairs with one and the same answer
LENGTH_TOLERANCE = 0.10


def hashed(*parts: str) -> int:
    """A number that depends on the text alone; the only source of chance here."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode("utf-8")).digest()[:8], "big")


def candidates(document: dict[str, Any]) -> tuple[list[dict[str, Any]], str | None]:
    """The instruction pairs that one document gives, or none and why.

    Questions spell out a qualified name and are answered as the documentation's authors did.
    """
    name, kind = document["name"], document["kind"]
    if not name:
        return [], "no title"
    answer = summary(document["text"])
    if answer is None:
        return [], "no usable summary"
    pairs = [_chat(document, kind, QUESTIONS[kind].format(name=name), answer)]
    if kind in ("function", "method") and hashed("parameter", name, document["text"]) % PARAMETER_SHARE == 0:
        described = sorted(parameters(document["text"]).items())
        if described:
            parameter, meaning = described[hashed("which", name, document["text"]) % len(described)]
            question = PARAMETER_QUESTION.format(parameter=parameter, name=name)
            pairs.append(_chat(document, "parameter", question, meaning))
    return pairs, None


def limited(pairs: Iterable[list[dict[str, Any]]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """The pairs of all documents, without those whose answer many before them have."""
    kept: list[dict[str, Any]] = []
    answers: Counter[str] = Counter()
    for own in pairs:
        answer = own[0]["messages"][1]["content"]
        answers[answer] += 1
        if answers[answer] > SAME_ANSWER:
            left_out["the same answer too often"] += 1
        else:
            kept += own
    return kept


def _chat(document: dict[str, Any], about: str, question: str, answer: str) -> dict[str, Any]:
    return {
        "id": f"{document['id']}/{about}",
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "name": document["name"],
        "about": about,
        "arguments": document["arguments"],
    }


def style_pairs(instructions: list[dict[str, Any]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """Pairs of one content in two forms: the house style, and another that is not.

    Where the authors' own summary is in house style it is ``chosen``; where it can be
    mended by rule, it is ``rejected``.
    """
    pairs = []
    for item in instructions:
        if item["about"] == "parameter":
            continue
        question, written = item["messages"][0]["content"], item["messages"][1]["content"]
        compliant = mend(written, item["about"])
        if compliant is None:
            left_out["no rule leads to house style"] += 1
            continue
        rejected: str | None = written
        if compliant == written:
            choice = hashed("spoil", question, written)
            rejected = spoil(compliant, item["about"], item["name"], item["arguments"], choice)
        if rejected is None:
            left_out["no rule leads out of house style"] += 1
            continue
        pairs.append(_preference(item, "style", question, compliant, rejected))
    return pairs


def content_pairs(style: list[dict[str, Any]], left_out: Counter[str]) -> list[dict[str, Any]]:
    """Pairs of the right summary and another entry's, both in house style.

    The other entry is of the same module for half of the pairs where there is one, its
    summary's length within 10% of the right one's.
    """
    by_module: dict[str, list[int]] = defaultdict(list)
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, pair in enumerate(style):
        by_module[_module(pair["name"])].append(index)
        by_length[len(pair["chosen"])].append(index)
    pairs = []
    for index, pair in enumerate(style):
        other = None
        if hashed("module", *_content(pair)) % 2 == 0:
            other = _other(index, style, by_module[_module(pair["name"])])
        for length in _lengths(pair) if other is None else ():
            other = other or _other(index, style, by_length.get(length, []))
        if other is None:
            left_out["no other summary of that length"] += 1
            continue
        pairs.append({**pair, "id": pair["id"] + "/content", "kind": "content", "rejected": other["chosen"]})
    return pairs


def _lengths(pair: dict[str, Any]) -> list[int]:
    """The lengths that count as alike, in an order that depends on the pair alone."""
    length = len(pair["chosen"])
    reach = int(LENGTH_TOLERANCE * length)
    lengths = list(range(length - reach, length + reach + 1))
    turn = hashed("length", *_content(pair)) % len(lengths)
    return lengths[turn:] + lengths[:turn]


def _other(index: int, style: list[dict[str, Any]], candidates: list[int]) -> dict[str, Any] | None:
    """Another pair of alike length and other content among the candidates, or None."""
    chosen = style[index]["chosen"]
    start = hashed("other", *_content(style[index])) % max(1, len(candidates))
    for candidate in candidates[start:] + candidates[:start]:
        other = style[candidate]
        same_length = abs(len(other["chosen"]) - len(chosen)) <= LENGTH_TOLERANCE * len(chosen)
        if candidate != index and same_length and other["chosen"] != chosen:
            return other
    return None


def _preference(item: dict[str, Any], kind: str, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "id": item["id"],
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "kind": kind,
        "name": item["name"],
    }


def _content(pair: dict[str, Any]) -> tuple[str, str, str]:
    """What chance goes by: an id may be the number of a line."""
    return pair["prompt"], pair["chosen"], pair["rejected"]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
