"""Preference data: every form in, every fault named, length bias, pairs from scores."""

from __future__ import annotations

import difflib
import json
import math
import random
import re
from itertools import permutations
from typing import Any

import pytest

from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.curate.preferences import (
    Scored,
    near_identical,
    normalise,
    pairs_from_scores,
    statistics,
)


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


U, GOOD, BAD = turn("user", "Is 7 a prime?"), turn("assistant", "Yes."), turn("assistant", "No.")
PAIR = {"prompt": "Is 7 a prime?", "chosen": "Yes.", "rejected": "No."}
SYSTEM = turn("system", "Be short.")
TALK = [turn("user", "Hi"), turn("assistant", "Hello"), U]


def count_words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Documentation of the standard library with more than one paragraph."""
    sources = package_sources("stdlib")
    found = [d for module, file in sources[::6] for d in read_docstrings(module, file, "stdlib")]
    several = [d for d in found if len(d["text"].split("\n\n")) > 1]
    assert len(several) > 300
    return several


@pytest.fixture(scope="module")
def pairs(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The whole text is chosen, its first paragraph rejected: length is all that differs."""
    made = []
    for document in documents:
        record = {
            "prompt": f"What does {document['name']} do?",
            "chosen": document["text"],
            "rejected": document["text"].split("\n\n")[0],
        }
        made.append(normalise(record)[0])
    kept = [pair for pair in made if pair is not None]
    assert len(kept) > 0.99 * len(made)
    return kept


@pytest.mark.parametrize(
    "record",
    [
        PAIR,
        {"prompt": " Is 7 a prime?\n", "chosen": " Yes.", "rejected": "\nNo."},
        {"question": "Is 7 a prime?", "chosen": "Yes.", "rejected": "No.", "system": ""},
        {"prompt": [U], "chosen": "Yes.", "rejected": "No."},
        {"prompt": [U], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": "Is 7 a prime?", "chosen": [U, GOOD], "rejected": [U, BAD], "messages": [U, GOOD]},
        {"prompt": None, "chosen": [U, GOOD], "rejected": [U, BAD]},
        {
            "chosen": [{"from": "human", "value": "Is 7 a prime?"}, {"from": "gpt", "value": "Yes."}],
            "rejected": [U, BAD],
        },
        {
            "chosen": "\n\nHuman: Is 7 a prime?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: Is 7 a prime?\n\nAssistant: No.",
        },
    ],
)
def test_all_forms_become_one(record: dict[str, Any]) -> None:
    before = json.dumps(record)
    assert normalise(record) == (PAIR, None)
    assert json.dumps(record) == before


def test_longer_prompts_stay_lists_of_turns() -> None:
    want = {"prompt": TALK, "chosen": "Yes.", "rejected": "No."}
    assert normalise({"chosen": [*TALK, GOOD], "rejected": [*TALK, BAD]}) == (want, None)
    assert normalise({"prompt": TALK, "chosen": "Yes.", "rejected": "No."}) == (want, None)
    transcript = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Is 7 a prime?\n\nAssistant:"
    assert normalise({"chosen": f"{transcript} Yes.", "rejected": f"{transcript} No."}) == (want, None)
    want = {"prompt": [SYSTEM, U], "chosen": "Yes.", "rejected": "No."}
    assert normalise({**PAIR, "system": "Be short."}) == (want, None)
    # The system turn counts wherever it stands.
    assert normalise(
        {"prompt": "Is 7 a prime?", "chosen": [SYSTEM, U, GOOD], "rejected": [SYSTEM, U, BAD]}
    ) == (want, None)
    assert normalise({"prompt": [SYSTEM, U], "chosen": [U, GOOD], "rejected": [U, BAD]}) == (want, None)
    # A normalised pair can be read again.
    assert normalise(want) == (want, None)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ("x", "the record is text, not an object with keys"),
        ({}, "'chosen' is missing"),
        ({"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        ({**PAIR, "rejected": " Yes.\n"}, "chosen and rejected are the same text"),
        ({**PAIR, "chosen": "  "}, "chosen: turn 2 (assistant) is empty"),
        ({**PAIR, "prompt": ""}, "chosen: turn 1 (user) is empty"),
        ({**PAIR, "rejected": "a\0"}, "rejected: turn 2 (assistant) holds a NUL character"),
        ({**PAIR, "rejected": "\udfff"}, "rejected: turn 2 (assistant) holds half a surrogate pair"),
        ({**PAIR, "rejected": 7}, "'rejected' is neither text nor a list of turns"),
        ({**PAIR, "prompt": 7}, "chosen: the content of turn 1 (user) is a number, not text"),
        ({**PAIR, "prompt": [U, GOOD]}, "chosen: turns 2 and 3 are both assistant turns"),
        ({"chosen": "Yes.", "rejected": "No."}, "the record has no 'prompt', and chosen is not a list of turns"),
        ({"chosen": [U, GOOD], "rejected": [turn("user", "Is 8?"), BAD]}, "the prompts differ: turn 1 is not the same"),
        ({"chosen": [*TALK, GOOD], "rejected": [U, BAD]}, "the prompts differ: chosen has 3 turns before its answer, rejected 1"),
        ({"chosen": [SYSTEM, U, GOOD], "rejected": [turn("system", "x"), U, BAD]}, "the prompts differ: turn 1"),
        ({"chosen": [U], "rejected": [U, BAD]}, "chosen: the chat ends with turn 1 (user)"),
        ({"chosen": [], "rejected": [U, BAD]}, "chosen: the chat has no turns"),
        ({"prompt": "Is 8 a prime?", "chosen": [U, GOOD], "rejected": [U, BAD]}, "the turns of chosen before its answer are not"),
        ({"prompt": [SYSTEM, U], "chosen": [turn("system", "x"), U, GOOD], "rejected": [U, BAD]}, "chosen and the record's prompt have different"),
        ({"prompt": "a", "question": "b", "chosen": "c", "rejected": "d"}, "the record has both 'prompt' and"),
        ({**PAIR, "score_chosen": math.nan, "score_rejected": 1}, "score_chosen is not a finite number"),
        ({**PAIR, "chosen_score": 1, "rejected_score": "1"}, "rejected_score is '1', not a number"),
        ({**PAIR, "chosen_score": 10**400, "rejected_score": 1}, "chosen_score is not a finite number"),
        ({"messages": [U, GOOD]}, "'chosen' is missing"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_that_says_where(record: object, fault: str) -> None:
    made, said = normalise(record)
    assert made is None
    assert str(said).startswith(fault)
    assert "\n" not in str(said)


def test_scores_come_along_where_both_are_given() -> None:
    scored = {**PAIR, "score_chosen": 8.0, "score_rejected": 2.5}
    assert normalise({**PAIR, "chosen_rating": 8, "rejected_rating": 2.5}) == (scored, None)
    assert normalise({**scored, "chosen_rating": None}) == (scored, None)
    assert normalise({**PAIR, "score_chosen": 8, "score_rejected": None}) == (PAIR, None)


def test_damaged_pairs_never_raise(pairs: list[dict[str, Any]]) -> None:
    chance = random.Random(7)
    values: list[Any] = [
        None,
        "",
        0,
        True,
        [],
        {},
        ["x"],
        [U],
        [GOOD],
        [U, GOOD],
        [{}],
        "\0",
        "\n\nHuman:",
        math.inf,
    ]
    keys = [
        "prompt",
        "chosen",
        "rejected",
        "system",
        "input",
        "history",
        "score_chosen",
        "score_rejected",
        "question",
    ]
    passed = 0
    for _ in range(6000):
        record = dict(chance.choice(pairs))
        for _ in range(chance.randint(1, 3)):
            record[chance.choice(keys)] = chance.choice(values)
        made, fault = normalise(record)
        assert (made is None) != (fault is None)
        if made is not None:
            passed += 1
            assert made["chosen"] != made["rejected"]
            assert normalise(made) == (made, None)
    assert passed > 200


def test_statistics_by_hand() -> None:
    data = [
        {"prompt": "p", "chosen": "a b c", "rejected": "a", "score_chosen": 3.0, "score_rejected": 1.0},
        {"prompt": "q", "chosen": "a", "rejected": "b c", "score_chosen": 1.0, "score_rejected": 1.5},
        {"prompt": "q", "chosen": "b c", "rejected": "a", "score_chosen": 2.0, "score_rejected": 2.0},
        {"prompt": "r", "chosen": "x", "rejected": "y"},
        {"prompt": "r", "chosen": "x", "rejected": "y"},
    ]
    found = statistics(data, count_words)
    warnings = found.pop("warnings")
    assert found == {
        "pairs": 5,
        "repeated": 1,
        "reversed": 2,
        "length": {
            "chosen_longer": 0.4,
            "chosen_shorter": 0.2,
            "equal": 0.4,
            "mean_difference": 0.4,
            "median_difference": 0,
        },
        # Wilson's interval of 2 in 3, by its formula with z = 1.96.
        "longer_is_better": {"accuracy": 0.6667, "low": 0.2077, "high": 0.9385, "pairs": 3},
        "near_identical": 0.0,
        "margins": {"pairs": 3, "mean": 0.5, "median": 0.0, "min": -0.5, "zero": 0.3333, "negative": 0.3333},
    }
    assert len(warnings) == 2
    assert warnings[0].startswith("2 pairs contradict others")
    assert "lower score in 33%" in warnings[1]


def test_statistics_of_nothing() -> None:
    found = statistics([], count_words)
    json.dumps(found, allow_nan=False)
    assert found["pairs"] == 0
    assert found["longer_is_better"] is found["margins"] is None
    assert found["warnings"] == []


def test_length_bias_is_found_where_it_is_and_only_there(pairs: list[dict[str, Any]]) -> None:
    def turned(share: float) -> list[dict[str, Any]]:
        chance = random.Random(3)
        return [
            {**p, "chosen": p["rejected"], "rejected": p["chosen"]} if chance.random() < share else p
            for p in pairs
        ]

    biased = statistics(pairs, count_words)
    assert biased["longer_is_better"]["accuracy"] == 1.0
    assert any(said.startswith("chosen is longer in 100% of the") for said in biased["warnings"])
    short = statistics(turned(1.0), count_words)
    assert any(said.startswith("chosen is shorter in 100%") for said in short["warnings"])
    assert short["length"]["mean_difference"] == -biased["length"]["mean_difference"]
    for share in (0.4, 0.5, 0.6):
        fair = statistics(turned(share), count_words)
        assert not any("a model may learn length" in said for said in fair["warnings"]), share
    # Three pairs of three prove nothing.
    few = statistics(pairs[:3], count_words)
    assert few["longer_is_better"]["accuracy"] == 1.0
    assert few["warnings"] == []


def test_nearly_identical_answers_are_counted(pairs: list[dict[str, Any]]) -> None:
    long = [p for p in pairs if 40 <= len(p["chosen"].split()) < 400][:60]
    assert len(long) == 60
    near = []
    for pair in long[:6]:
        words = pair["chosen"].split(" ")
        words[len(words) // 2] = "something"
        near.append({**pair, "rejected": " ".join(words)})
    found = statistics(near + long[6:], count_words)
    assert found["near_identical"] == pytest.approx(0.1)
    assert any("nearly identical in 10%" in said for said in found["warnings"])


def test_near_identity_is_difflibs_over_words(documents: list[dict[str, Any]]) -> None:
    """Against difflib's own ratio of all words, wherever that is not right at the limit."""
    chance = random.Random(11)
    seen = {True: 0, False: 0}
    for document in documents[:300]:
        words = re.findall(r"\w+", document["text"])[:200]
        rate = chance.choice((0.01, 0.04, 0.1, 0.3))
        changed = [word for word in words if chance.random() > rate]
        ratio = difflib.SequenceMatcher(None, words, changed, autojunk=False).ratio()
        if abs(ratio - 0.95) > 0.005:
            assert near_identical(" ".join(words), " ".join(changed)) == (ratio > 0.95)
            seen[ratio > 0.95] += 1
    assert min(seen.values()) > 50


@pytest.mark.parametrize(
    ("one", "two", "alike"),
    [
        ("x = 1\nreturn x", "x = 1\n    return x", True),
        ("The answer is 41.", "The answer is 42.", False),
        ("🙂", "🙏", False),
        ("一二三四五六七八九十" * 4, "一二三四五六七八九十" * 4 + "百", True),
        ("一二三四五六七八九十", "甲乙丙丁戊己庚辛壬癸", False),
    ],
)
def test_near_identity_of_small_changes(one: str, two: str, alike: bool) -> None:
    assert near_identical(one, two) is alike


def scored(*answers: tuple[str, float], prompt: str = "p") -> list[dict[str, Any]]:
    return [{"prompt": prompt, "response": text, "score": score} for text, score in answers]


def named(made: Scored) -> list[tuple[str, str]]:
    return [(pair["chosen"], pair["rejected"]) for pair in made.pairs]


FOUR = scored(("a", 4), ("b", 3), ("c", 2), ("d", 1))


@pytest.mark.parametrize(
    ("policy", "limit", "pairs"),
    [
        ("best-worst", 1, [("a", "d")]),
        ("best-worst", 0, [("a", "d"), ("b", "c")]),
        ("all-adjacent", 0, [("a", "b"), ("b", "c"), ("c", "d")]),
        ("all-adjacent", 2, [("a", "b"), ("b", "c")]),
    ],
)
def test_policies(policy: str, limit: int, pairs: list[tuple[str, str]]) -> None:
    made = pairs_from_scores(FOUR, min_margin=0, pairs_per_prompt=limit, policy=policy)
    assert named(made) == pairs
    assert made.pairs[0]["score_chosen"] > made.pairs[0]["score_rejected"]
    assert (made.prompts, made.answers, made.faults) == (1, 4, [])


def test_best_random_takes_any_other_answer_and_the_text_decides() -> None:
    drawn = []
    for number in range(300):
        data = scored(("a", 4), ("b", 3), ("c", 2), ("d", 1), prompt=f"Question {number}?")
        made = pairs_from_scores(data, min_margin=0, pairs_per_prompt=1, policy="best-random")
        [(chosen, rejected)] = named(made)
        assert chosen == "a"
        assert made.left_out == {"beyond the pairs for a prompt": 2}
        drawn.append(rejected)
    # 100 expected of each; five standard deviations are 41.
    assert all(60 < drawn.count(letter) < 140 for letter in "bcd")


@pytest.mark.parametrize("policy", ["best-worst", "best-random", "all-adjacent"])
def test_the_order_of_the_records_changes_nothing(policy: str) -> None:
    data = [*FOUR[:3], *scored(("e", 4), ("f", 2))]
    found = set()
    for order in permutations(data):
        made = pairs_from_scores(order, min_margin=0.5, pairs_per_prompt=2, policy=policy)
        found.add(json.dumps([made.pairs, made.left_out]))
    assert len(found) == 1


def test_every_answer_that_gave_no_pair_is_counted() -> None:
    data = [
        *scored(("a", 5), ("b", 5), prompt="tie"),
        *scored(("a", 5), ("b", 4.5), prompt="close"),
        *scored(("a", 0.3), ("b", 0.2 - 0.7), prompt="far"),
        *scored(("a", 5), prompt="alone"),
        *scored(("a", 5), (" a\n", 7), ("b", 1), prompt="again"),
    ]
    made = pairs_from_scores(data, min_margin=0.8, pairs_per_prompt=1, policy="best-worst")
    assert [(pair["prompt"], pair["score_chosen"]) for pair in made.pairs] == [("far", 0.3), ("again", 6.0)]
    assert made.left_out == {
        "answer scored more than once": 1,
        "equal scores": 1,
        "margin below the minimum": 1,
        "prompt with a single answer": 1,
    }
    assert (made.prompts, made.answers) == (5, 9)


def test_a_margin_at_the_limit_is_enough_whatever_the_rounding() -> None:
    data = scored(("a", 0.3), ("b", 0.2))
    assert 0.3 - 0.2 < 0.1
    assert named(pairs_from_scores(data, min_margin=0.1, pairs_per_prompt=1, policy="best-worst")) == [
        ("a", "b")
    ]
    # A mean that rounding sets apart from its equal is a tie.
    data = scored(("a", 0.1), ("a", 0.1), ("a", 0.1), ("b", 0.1))
    made = pairs_from_scores(data, min_margin=0, pairs_per_prompt=1, policy="best-worst")
    assert made.left_out["equal scores"] == 1


def test_forms_of_scored_records_share_their_prompt() -> None:
    talk = [SYSTEM, *TALK]
    data: list[dict[str, Any]] = [
        {"prompt": " p ", "responses": ["a", "b"], "scores": [1, 2.5]},
        {"prompt": [turn("user", "p")], "response": "c", "score": 9},
        {"prompt": talk, "responses": ["x", "y"], "scores": [2, 1]},
    ]
    made = pairs_from_scores(data, min_margin=1, pairs_per_prompt=1, policy="best-worst")
    assert made.pairs == [
        {"prompt": "p", "chosen": "c", "rejected": "a", "score_chosen": 9.0, "score_rejected": 1.0},
        {"prompt": talk, "chosen": "x", "rejected": "y", "score_chosen": 2.0, "score_rejected": 1.0},
    ]
    assert all(normalise(pair) == (pair, None) for pair in made.pairs)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (None, "the record is missing, not an object"),
        ({"response": "a", "score": 1}, "the record has no prompt"),
        ({"prompt": "p", "score": 1}, "'response' is missing"),
        ({"prompt": "p", "response": "a"}, "'score' is missing"),
        ({"prompt": "p", "responses": ["a"]}, "'scores' is missing"),
        ({"prompt": "p", "response": "a", "score": math.nan}, "score is not a finite number"),
        ({"prompt": "p", "response": "a", "score": -math.inf}, "score is not a finite number"),
        ({"prompt": "p", "response": "a", "score": "5"}, "score is '5', not a number"),
        ({"prompt": "p", "response": "a", "score": True}, "score is 'True', not a number"),
        ({"prompt": "p", "response": "", "score": 1}, "response: turn 2 (assistant) is empty"),
        ({"prompt": "", "response": "a", "score": 1}, "response: turn 1 (user) is empty"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "the record has 2 responses and 1 scores"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, None]}, "score 2 is 'None', not a number"),
        ({"prompt": "p", "responses": ["a", 3], "scores": [1, 2]}, "response 2: the content of turn 2"),
        ({"prompt": "p", "responses": [], "scores": []}, "'responses' and 'scores' must be lists with"),
        ({"prompt": "p", "responses": "ab", "scores": [1, 2]}, "'responses' and 'scores' must be lists with"),
    ],
)
def test_faulty_scored_records_are_left_out_whole(record: object, fault: str) -> None:
    made = pairs_from_scores(
        [FOUR[0], record, FOUR[3]], min_margin=0, pairs_per_prompt=1, policy="best-worst"
    )
    [(index, said)] = made.faults
    assert index == 1
    assert said.startswith(fault)
    assert named(made) == [("a", "d")]


def test_an_unknown_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of best-worst, best-random, all-adjacent"):
        pairs_from_scores([], min_margin=0, pairs_per_prompt=1, policy="best")
