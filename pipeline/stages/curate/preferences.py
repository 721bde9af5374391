"""Preference data of the user's own: one form for all, its length bias, and pairs from scores.

:func:`normalise` brings the usual formats (TRL with and without ``prompt``, UltraFeedback, the
transcripts of Anthropic's HH-RLHF) to ``{"prompt", "chosen", "rejected"}`` or says in one
sentence what is wrong.  :func:`statistics` measures what a model could learn instead of the
preference, above all length (Singhal et al. 2023, arXiv:2310.03716).  :func:`pairs_from_scores`
makes pairs from answers that a reward model or a judge has scored.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from statistics import fmean, median
from typing import Any

from pipeline import strict_json
from pipeline.stages.curate.chats import (
    CountTokens,
    Message,
    as_mapping,
    checked,
    comparable,
    prompt_turns,
    system_turn,
)
from pipeline.stages.curate.fields import Noted, Unusable, count_unused, refuse

Pair = dict[str, Any]

SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
POLICIES = ("best-worst", "best-random", "all-adjacent")
TRANSCRIPT = re.compile(r"\n\n(Human|Assistant):")
WORD = re.compile(r"\w+|[^\w\s]")
NEAR_IDENTICAL = 0.95  # difflib ratio of two answers' words
# In public preference data the longer answer is the chosen one in about 60% of the pairs (59.8% is
# reported in arXiv:2502.00814).  Beyond 65%, and with chance ruled out, length tells more than that.
LENGTH_RULE = 0.65
# DPO on pairs a few words apart can make the chosen answer less likely (Pal et al. 2024, arXiv:2402.13228).
NEAR_SHARE = 0.05
CONTRADICTED_SHARE = 0.01  # more is no slip: the columns or the scores' sign are to be checked


def normalise(record: object) -> tuple[Pair | None, str | None]:
    """The record as ``{"prompt", "chosen", "rejected"}`` and no fault, or nothing and the fault.

    The answers are text.  The prompt is text where it is one user turn, else the list of its
    turns.  Scores, where both are given, come along as ``score_chosen`` and ``score_rejected``.
    """
    try:
        return _pair(as_mapping(record)), None
    except Unusable as fault:
        return None, str(fault)


def _pair(record: Noted) -> Pair:
    refuse(record, "the record")
    given = prompt_turns(record)
    chosen, rejected = (_side(record, side, given) for side in ("chosen", "rejected"))
    if len(chosen) != len(rejected):
        raise Unusable(
            f"the prompts differ: chosen has {len(chosen) - 1} turns before its answer, rejected {len(rejected) - 1}"
        )
    for place, (one, two) in enumerate(zip(chosen[:-1], rejected[:-1], strict=True), start=1):
        if not _same(one, two):
            raise Unusable(f"the prompts differ: turn {place} is not the same in chosen and in rejected")
    if _same(chosen[-1], rejected[-1]):
        raise Unusable("chosen and rejected are the same text")
    pair: Pair = {
        "prompt": _prompt(chosen[:-1]),
        "chosen": chosen[-1]["content"],
        "rejected": rejected[-1]["content"],
    }
    for one_name, two_name in SCORES:
        if record.record.get(one_name) is not None and record.record.get(two_name) is not None:
            pair["score_chosen"] = _score(record[one_name], one_name)
            pair["score_rejected"] = _score(record[two_name], two_name)
            break
    return pair


def _side(record: Noted, side: str, given: list[Any] | None) -> list[Message]:
    """The prompt and this side's answer, as one checked chat."""
    value = record.get(side)
    if isinstance(value, list):
        if given is None:
            return _named(side, system_turn(record) + value, record)
        if len(value) == 1:
            return _named(side, given + value, record)
        own, whole = _named(side, value, record), _named(side, given + value[-1:], record)
        # Either may lack the system turn that the other has.
        if not all(map(_same, _spoken(own), _spoken(whole))) or len(_spoken(own)) != len(_spoken(whole)):
            raise Unusable(f"the turns of {side} before its answer are not the record's prompt")
        systems = [turns[0] for turns in (own, whole) if turns[0]["role"] == "system"]
        if len(systems) == 2 and not _same(*systems):
            raise Unusable(f"{side} and the record's prompt have different system turns")
        return systems[:1] + _spoken(own)
    if value is None:
        raise Unusable(f"{side!r} is missing")
    if not isinstance(value, str):
        raise Unusable(f"{side!r} is neither text nor a list of turns")
    if given is not None:
        return _named(side, [*given, {"role": "assistant", "content": value}], record)
    parts = TRANSCRIPT.split(f"\n\n{value.lstrip()}")
    if len(parts) < 3 or parts[0].strip():
        raise Unusable(f"the record has no 'prompt', and {side} is not a list of turns that includes it")
    roles = ["user" if speaker == "Human" else "assistant" for speaker in parts[1::2]]
    turns = [{"role": r, "content": text} for r, text in zip(roles, parts[2::2], strict=True)]
    return _named(side, system_turn(record) + turns, record)


def _same(one: Message, two: Message) -> bool:
    """Whether two turns say the same, white space around them aside."""
    return one["role"] == two["role"] and one["content"].strip() == two["content"].strip()


def _named(side: str, turns: list[Any], noted: Noted) -> list[Message]:
    try:
        return checked(turns, noted)
    except Unusable as fault:
        raise Unusable(f"{side}: {fault}") from None


def _spoken(messages: list[Message]) -> list[Message]:
    return [message for message in messages if message["role"] != "system"]


def _prompt(turns: list[Message]) -> str | list[Message]:
    return turns[0]["content"] if len(turns) == 1 and turns[0]["role"] == "user" else turns


def _score(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unusable(f"{name} is {str(value)[:40]!r}, not a number")
    try:
        score = float(value)
    except OverflowError:
        score = math.inf
    if not math.isfinite(score):
        raise Unusable(f"{name} is not a finite number")
    return score


def statistics(pairs: Iterable[Pair], count_tokens: CountTokens) -> dict[str, Any]:
    """Figures of a data set of normalised pairs, as plain JSON, with ``warnings`` in sentences.

    ``length`` compares the answers' tokens; ``longer_is_better`` is how often the rule "the longer
    answer is the better one" is right among pairs of different lengths, with Wilson's 95% interval.
    ``near_identical`` is the share of answers whose words have a :mod:`difflib` ratio above 0.95.
    ``reversed`` counts pairs that the data also holds the other way round.
    """
    differences: list[int] = []
    margins: list[float] = []
    near = repeated = 0
    seen: Counter[bytes] = Counter()
    turned: set[bytes] = set()
    for pair in pairs:
        differences.append(count_tokens(pair["chosen"]) - count_tokens(pair["rejected"]))
        near += near_identical(pair["chosen"], pair["rejected"])
        if pair.get("score_chosen") is not None and pair.get("score_rejected") is not None:
            margins.append(pair["score_chosen"] - pair["score_rejected"])
        key = _digest(pair["prompt"], pair["chosen"], pair["rejected"])
        repeated += key in seen
        seen[key] += 1
        turned.add(_digest(pair["prompt"], pair["rejected"], pair["chosen"]))
    count = len(differences)
    longer, shorter = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    figures = {
        "pairs": count,
        "repeated": repeated,
        "reversed": sum(times for key, times in seen.items() if key in turned),
        "length": {
            "chosen_longer": _share(longer, count),
            "chosen_shorter": _share(shorter, count),
            "equal": _share(count - longer - shorter, count),
            "mean_difference": round(fmean(differences), 2) if count else None,
            "median_difference": median(differences) if count else None,
        },
        "longer_is_better": _rule(longer, longer + shorter),
        "near_identical": _share(near, count),
        "margins": _margins(margins),
    }
    return {**figures, "warnings": _warnings(figures)}


def near_identical(one: str, two: str) -> bool:
    """Whether the words of two texts have a :mod:`difflib` ratio above 0.95.

    By words, not characters: all long texts of a language are alike in their letters.  The
    common beginning and end, which difflib's ratio counts as equal too, are taken off for speed.
    """
    a, b = WORD.findall(comparable(one)), WORD.findall(comparable(two))
    total = len(a) + len(b)
    if 2 * min(len(a), len(b)) <= NEAR_IDENTICAL * total:
        return False
    same = _common(a, b)
    a, b = a[same:], b[same:]
    end = _common(reversed(a), reversed(b))
    a, b = a[: len(a) - end], b[: len(b) - end]
    same += end
    needed = NEAR_IDENTICAL * total / 2 - same  # equal words that the middles must have more of
    matcher = difflib.SequenceMatcher(None, a, b, autojunk=False)
    if sum((Counter(a) & Counter(b)).values()) <= needed:
        return False
    return sum(block.size for block in matcher.get_matching_blocks()) > needed


def _common(one: Iterable[str], two: Iterable[str]) -> int:
    """How many words both begin with."""
    return sum(1 for _ in takewhile(lambda words: words[0] == words[1], zip(one, two, strict=False)))


def _rule(right: int, pairs: int) -> dict[str, Any] | None:
    if not pairs:
        return None
    from scipy.stats import binomtest

    interval = binomtest(right, pairs).proportion_ci(0.95, method="wilson")
    return {
        "accuracy": round(right / pairs, 4),
        "low": round(float(interval.low), 4),
        "high": round(float(interval.high), 4),
        "pairs": pairs,
    }


def _margins(margins: list[float]) -> dict[str, Any] | None:
    if not margins:
        return None
    return {
        "pairs": len(margins),
        "mean": round(fmean(margins), 6),
        "median": round(median(margins), 6),
        "min": round(min(margins), 6),
        "zero": _share(sum(margin == 0 for margin in margins), len(margins)),
        "negative": _share(sum(margin < 0 for margin in margins), len(margins)),
    }


def _warnings(figures: dict[str, Any]) -> list[str]:
    found = []
    rule, margins = figures["longer_is_better"], figures["margins"]
    if rule and (rule["low"] > LENGTH_RULE or rule["high"] < 1 - LENGTH_RULE):
        side, share = ("longer", rule["accuracy"]) if rule["low"] > 0.5 else ("shorter", 1 - rule["accuracy"])
        found.append(
            f"chosen is {side} in {share:.0%} of the {rule['pairs']:,} pairs of different lengths: a model may learn"
            f" length. Public data lies near 60%; the warning starts where the 95% interval passes {LENGTH_RULE:.0%}"
        )
    if (figures["near_identical"] or 0) > NEAR_SHARE:
        found.append(
            f"the answers are nearly identical in {figures['near_identical']:.0%} of the pairs (more than"
            f" {NEAR_SHARE:.0%}): DPO may lower the likelihood of the chosen answers with that of the rejected ones"
        )
    if figures["reversed"]:
        found.append(
            f"{figures['reversed']:,} pairs contradict others: the same two answers the other way round"
        )
    if margins and margins["negative"] > CONTRADICTED_SHARE:
        found.append(
            f"chosen has the lower score in {margins['negative']:.0%} of the scored pairs (more than"
            f" {CONTRADICTED_SHARE:.0%}): are the columns or the scores' sign the wrong way round?"
        )
    return found


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def _digest(*parts: object) -> bytes:
    return hashlib.sha256(strict_json.dumps(parts, ensure_ascii=True).encode()).digest()[:16]


@dataclass
class Scored:
    """Pairs made from scored answers, and the account of everything that gave none.

    ``left_out`` counts by reason; ``faults`` are (index of the record, what is wrong with it);
    ``unused`` counts the keys of good records that say something and were not used.
    """

    prompts: int = 0
    answers: int = 0
    pairs: list[Pair] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    faults: list[tuple[int, str]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)


def pairs_from_scores(
    records: Iterable[object], *, min_margin: float, pairs_per_prompt: int, policy: str
) -> Scored:
    """Preference pairs from ``{"prompt", "response", "score"}`` or ``{"prompt", "responses", "scores"}``.

    Records with the same prompt are one group; an answer scored several times counts once, with
    its mean score.  ``best-worst`` pairs the best with the worst, the second best with the second
    worst, and so on; ``best-random`` the best with others in an order that their text decides
    (as Zephyr does with one, Tunstall et al. 2023, arXiv:2310.16944); ``all-adjacent`` every rank
    with the next.  Pairs of equal score or with a margin below ``min_margin`` (in the scores'
    unit) are left out; at most ``pairs_per_prompt`` stay (0: all).  Prompts keep the order of
    their first record; nothing else depends on the order of the records.  A record with a fault
    is left out whole.  Raises ``ValueError`` for an unknown policy.
    """
    if policy not in POLICIES:
        raise ValueError(f"unknown policy {policy!r}; use one of {', '.join(POLICIES)}")
    made = Scored()
    groups: dict[str, dict[str, list[float]]] = {}
    for index, record in enumerate(records):
        try:
            noted = as_mapping(record)
            turns, answers = _scored(noted)
        except Unusable as fault:
            made.faults.append((index, str(fault)))
            continue
        count_unused(noted, made.unused)
        group = groups.setdefault(strict_json.dumps(turns, ensure_ascii=False), {})
        for text, score in answers:
            group.setdefault(text, []).append(score)
    left_out: Counter[str] = Counter()
    for prompt, scores in groups.items():
        ranked = sorted(
            ((fmean(values), text) for text, values in scores.items()),
            key=lambda each: (-each[0], _digest(prompt, each[1])),
        )
        made.answers += len(ranked)
        left_out["answer scored more than once"] += sum(len(values) - 1 for values in scores.values())
        left_out["prompt with a single answer"] += len(ranked) == 1
        kept = 0
        for (high, chosen), (low, rejected) in _candidates(ranked, prompt, policy):
            if reason := _too_close(high, low, min_margin):
                left_out[reason] += 1
            elif pairs_per_prompt and kept == pairs_per_prompt:
                left_out["beyond the pairs for a prompt"] += 1
            else:
                kept += 1
                made.pairs.append(
                    {
                        "prompt": _prompt(json.loads(prompt)),
                        "chosen": chosen,
                        "rejected": rejected,
                        "score_chosen": high,
                        "score_rejected": low,
                    }
                )
    made.prompts = len(groups)
    made.left_out = {reason: number for reason, number in sorted(left_out.items()) if number}
    return made


def _scored(record: Noted) -> tuple[list[Message], list[tuple[str, float]]]:
    """A record's prompt and its answers with their scores."""
    refuse(record, "the record")
    given = prompt_turns(record)
    if given is None:
        raise Unusable("the record has no prompt")
    several = record.record.get("responses") is not None
    names = ("responses", "scores") if several else ("response", "score")
    answers, scores = (record.get(name) for name in names)
    if answers is None or scores is None:
        raise Unusable(f"{names[answers is not None]!r} is missing")
    if not several:
        answers, scores = [answers], [scores]
    if not isinstance(answers, list) or not isinstance(scores, list) or not answers:
        raise Unusable("'responses' and 'scores' must be lists with at least one entry")
    if len(answers) != len(scores):
        raise Unusable(f"the record has {len(answers)} responses and {len(scores)} scores")
    found, turns = [], []
    for place, (answer, score) in enumerate(zip(answers, scores, strict=True), start=1):
        label = f" {place}" if several else ""
        messages = _named(f"response{label}", [*given, {"role": "assistant", "content": answer}], record)
        found.append((messages[-1]["content"], _score(score, f"score{label}")))
        turns = messages[:-1]
    return turns, found


def _candidates(
    ranked: Sequence[tuple[float, str]], prompt: str, policy: str
) -> Iterable[tuple[tuple[float, str], tuple[float, str]]]:
    if policy == "best-worst":
        return [(ranked[i], ranked[-1 - i]) for i in range(len(ranked) // 2)]
    if policy == "all-adjacent":
        return list(pairwise(ranked))
    others = sorted(ranked[1:], key=lambda each: _digest("random", prompt, each[1]))
    return [(ranked[0], other) for other in others]


def _too_close(high: float, low: float, min_margin: float) -> str | None:
    margin = high - low
    # Means and differences round: 0.3 - 0.2 is a little less than 0.1.
    if math.isclose(high, low, rel_tol=1e-12):
        return "equal scores"
    enough = margin >= min_margin or math.isclose(margin, min_margin, rel_tol=1e-9, abs_tol=1e-12)
    return None if enough else "margin below the minimum"
