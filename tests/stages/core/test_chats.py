"""Instruction data: every form in, every fault named, figures against a count by hand."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.curate.chats import comparable, duplicate_prompts, normalise, statistics, too_long
from pipeline.stages.curate.fields import Noted, trimmed
from pipeline.stages.curate.harvest import package_sources, read_docstrings

ROOT = Path(__file__).resolve().parents[3]
SETTINGS: dict[str, Any] = {"ngram": 2, "permutations": 128, "bands": 32, "threshold": 0.7}


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def chat(*contents: str, system: str | None = None) -> dict[str, Any]:
    """A chat of user and assistant turns."""
    messages = [turn("system", system)] if system else []
    return {"messages": messages + [turn(("user", "assistant")[i % 2], c) for i, c in enumerate(contents)]}


def count_words(text: str) -> int:
    return len(text.split())


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Documentation of the standard library: the first and the further paragraphs."""
    sources = package_sources("stdlib")
    found = [d for module, file in sources[::6] for d in read_docstrings(module, file, "stdlib")]
    several = [d for d in found if len(d["text"].split("\n\n")) > 1]
    assert len(several) > 300
    return several


@pytest.fixture(scope="module")
def chats(documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made = []
    for document in documents:
        head, rest = document["text"].split("\n\n", 1)
        question = f"What does the {document['kind']} {document['name']} do?"
        made.append(normalise(chat(question, head, "Tell me more.", rest))[0])
    kept = [each for each in made if each is not None]
    assert len(kept) > 0.99 * len(made)
    return kept


SAME = chat("Is 7 a prime?", "Yes.")


@pytest.mark.parametrize(
    "record",
    [
        chat("Is 7 a prime?", "Yes."),
        chat(" \n\nIs 7 a prime?\n", "\n Yes.\t"),
        {"conversations": [{"from": "human", "value": "Is 7 a prime?"}, {"from": "gpt", "value": "Yes."}]},
        {"conversations": [turn("user", "Is 7 a prime?"), turn("assistant", "Yes.")], "tools": None},
        {"instruction": "Is 7 a prime?", "input": "", "output": "Yes."},
        {"instruction": "Is 7 a prime?", "output": "Yes.", "system": "", "history": []},
        {"prompt": "Is 7 a prime?", "completion": " Yes."},
        {"prompt": "Is 7 a prime?", "response": "Yes.", "completion": None},
        {"question": "Is 7 a prime?", "answer": "Yes."},
        {"prompt": [turn("user", "Is 7 a prime?")], "completion": [turn("assistant", "Yes.")]},
        {"messages": [turn("user", [{"type": "text", "text": "Is 7 a prime?"}]), turn("assistant", "Yes.")]},
        {"prompt": "Is 7 a prime?", "prompt_id": "x", **SAME},
    ],
)
def test_all_forms_become_one(record: dict[str, Any]) -> None:
    before = json.dumps(record)
    assert normalise(record) == (SAME, None)
    assert json.dumps(record) == before  # the caller's record stays as it was


def test_what_stands_around_a_prompt_is_kept() -> None:
    made, _ = normalise(
        {
            "instruction": "Translate.",
            "input": "Hund",
            "output": "dog",
            "system": "Be short.",
            "history": [["Hi", "Hello"]],
        }
    )
    assert made == chat("Hi", "Hello", "Translate.\n\nHund", "dog", system="Be short.")
    dolly, _ = normalise(
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "qa"}
    )
    assert dolly == chat("Who?\n\nAda wrote it.", "Ada")
    given, _ = normalise(
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}], "system": "S"}
    )
    assert given == chat("a", "b", system="S")


def test_tools_results_are_kept_between_assistant_turns() -> None:
    tools = [turn("user", "Weather?"), turn("assistant", "get()"), turn("tool", "{1}"), turn("tool", "{2}")]
    good = {"messages": [*tools, turn("assistant", "Sun.")]}
    assert normalise(good) == (good, None)
    assert (
        normalise({"messages": tools})[1]
        == "the chat ends with turn 4 (tool), without the assistant's answer"
    )
    assert "did not answer" in str(normalise({"messages": [*tools, turn("user", "?")]})[1])
    assert "does not follow" in str(normalise({"messages": [*tools[::2], turn("assistant", "x")]})[1])


U, A = turn("user", "Hello?"), turn("assistant", "Hello.")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ([U, A], "the record is a list, not an object with keys"),
        ({}, "the record has neither 'messages' nor 'conversations' nor a prompt with an answer"),
        ({"messages": None}, "the record has neither 'messages'"),
        ({"messages": "Hello"}, "'messages' is text, not a list of turns"),
        ({"messages": []}, "the chat has no turns"),
        ({"messages": ["Hello"]}, "turn 1 is text, not an object with a role and content"),
        ({"messages": [U, {"content": "Hi"}]}, "turn 2 has no role"),
        ({"messages": [U, turn("bot", "Hi")]}, "turn 2 has the unknown role 'bot'; the roles are system, user,"),
        ({"messages": [U, turn(["user"], "Hi")]}, "turn 2 has the unknown role"),  # type: ignore[arg-type]
        ({"messages": [A, U, A]}, "turn 1 (assistant) answers nothing; the user speaks first"),
        ({"messages": [turn("system", "S"), A]}, "turn 2 (assistant) answers nothing"),
        ({"messages": [U, A, U, U, A]}, "turns 3 and 4 are both user turns; user and assistant alternate"),
        ({"messages": [U, A, A]}, "turns 2 and 3 are both assistant turns"),
        ({"messages": [U, turn("system", "S"), A]}, "turn 2 is a system turn; only the first turn can be one"),
        ({"messages": [turn("system", "S"), turn("system", "S"), U, A]}, "turn 2 is a system turn"),
        ({"messages": [U, A], "system": "T"} | {"messages": [turn("system", "S"), U, A]}, "turn 2 is a system turn"),
        ({"messages": [U, A, U]}, "the chat ends with turn 3 (user), without the assistant's answer"),
        ({"messages": [turn("system", "S")]}, "the chat ends with turn 1 (system)"),
        ({"messages": [U, turn("assistant", "")]}, "turn 2 (assistant) is empty"),
        ({"messages": [U, A, turn("user", " \n\t\u3000"), A]}, "turn 3 (user) is empty"),
        ({"messages": [U, turn("assistant", "\u200b\ufeff")]}, "turn 2 (assistant) has no visible text"),
        ({"messages": [U, turn("assistant", None)]}, "the content of turn 2 (assistant) is missing, not text"),
        ({"messages": [U, turn("assistant", 42)]}, "the content of turn 2 (assistant) is a number, not text"),
        ({"messages": [U, turn("assistant", {"a": 1})]}, "the content of turn 2 (assistant) is an object, not"),
        ({"messages": [turn("user", "a\0b"), A]}, "turn 1 (user) holds a NUL character at character 2"),
        ({"messages": [turn("user", "\ud83d!"), A]}, "turn 1 (user) holds half a surrogate pair (U+D83D) at"),
        ({"messages": [U, {**A, "tool_calls": [{"id": 1}]}]}, "turn 2 (assistant) calls a tool outside its text"),
        ({"messages": [turn("user", [{"type": "image_url"}]), A]}, "turn 1 (user) holds something other than"),
        ({"prompt": "a", "question": "b", "answer": "c"}, "the record has both 'prompt' and 'question'"),
        ({"prompt": "a", "response": "b", "answer": "c"}, "the record has both 'response' and 'answer'"),
        ({"prompt": "a"}, "the record has a prompt and no answer"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "the record is a preference pair"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "'input' is a list, not text"),
        ({"instruction": "a", "output": "c", "history": 3}, "'history' is a number, not a list"),
        ({"instruction": "a", "output": "c", "history": ["b"]}, "entry 1 of 'history' is not a pair"),
        ({"prompt": 3, "completion": "c"}, "the content of turn 1 (user) is a number"),
    ],
)  # fmt: skip
def test_a_fault_is_one_sentence_that_says_where(record: object, fault: str) -> None:
    made, said = normalise(record)
    assert made is None
    assert str(said).startswith(fault)
    assert "\n" not in str(said)


def test_damaged_chats_never_raise_and_what_passes_is_sound(chats: list[dict[str, Any]]) -> None:
    chance = random.Random(5)
    values: list[Any] = [
        None,
        "",
        " ",
        0,
        1.5,
        True,
        [],
        {},
        ["x"],
        {"text": "x"},
        "\0",
        "\udc00",
        "user",
        "system",
    ]
    keys = ["role", "content", "from", "value", "messages", "prompt", "output", "system", "history", "input"]
    passed = 0
    for _ in range(6000):
        record = json.loads(json.dumps(chance.choice(chats)))
        for _ in range(chance.randint(1, 3)):
            turns = record.get("messages")
            target = (
                chance.choice(turns)
                if isinstance(turns, list) and turns and chance.random() < 0.6
                else record
            )
            act = chance.random()
            if isinstance(target, dict) and act < 0.5:
                target[chance.choice(keys)] = chance.choice(values)
            elif isinstance(turns, list) and turns and act < 0.7:
                turns.pop(chance.randrange(len(turns)))
            elif isinstance(turns, list) and turns:
                turns.insert(chance.randrange(len(turns)), chance.choice(turns))
        made, fault = normalise(record)
        assert (made is None) != (fault is None)
        if made is not None:
            passed += 1
            roles = [message["role"] for message in made["messages"]]
            spoken = roles[1:] if roles[0] == "system" else roles
            assert spoken == ["user", "assistant"] * (len(spoken) // 2)
            assert all(
                trimmed(m["content"]).encode() == m["content"].encode() != b"" for m in made["messages"]
            )
            assert normalise(made) == (made, None)
    assert 200 < passed < 5000


def test_the_turn_and_the_chat_are_held_against_the_budget() -> None:
    made = chat("one two three", "four five six seven eight", "nine", "ten", system="Be kind.")
    assert too_long(made, count_words, 12) is None
    said = "the chat has 12 tokens in 5 turns, the most, 5, in turn 3 (assistant); it may have 11"
    assert too_long(made, count_words, 11) == said
    assert too_long(made, count_words, 4) == "turn 3 (assistant) has 5 tokens; a turn may have 4"
    assert (
        too_long(made, count_words, 12, turn_budget=4) == "turn 3 (assistant) has 5 tokens; a turn may have 4"
    )
    assert (
        too_long(made, count_words, 4, turn_budget=100)
        == "turn 3 (assistant) has 5 tokens; a turn may have 4"
    )
    assert too_long(made, count_words, 17, overhead=1) is None
    assert too_long(made, count_words, 16, overhead=1) is not None


def test_statistics_by_hand() -> None:
    data = [
        chat("a b", "c"),
        chat("A  b", "d e f", system="S s"),
        chat("x", "y", "z z z z", "w", system="S  S"),
    ]
    languages = {"a b": "fr", "A  b": "en", "x\nz z z z": "de", "c": "en", "d e f": "en", "y\nw": "un"}
    found = statistics(data, count_words, languages.__getitem__)
    assert found == {
        "chats": 3,
        "turns": {"2": 2, "4": 1},
        "with_system": 0.6667,
        "different_system_prompts": 1,
        "lengths": {
            "prompts": {
                "characters": {"min": 1, "median": 3.5, "p95": 7, "max": 7},
                "tokens": {"min": 1, "median": 2.0, "p95": 4, "max": 4},
            },
            "answers": {
                "characters": {"min": 1, "median": 1.0, "p95": 5, "max": 5},
                "tokens": {"min": 1, "median": 1.0, "p95": 3, "max": 3},
            },
            "chats": {
                "characters": {"min": 4, "median": 12, "p95": 14, "max": 14},
                "tokens": {"min": 3, "median": 7, "p95": 9, "max": 9},
            },
        },
        "languages": {"prompts": {"de": 1, "en": 1, "fr": 1}, "answers": {"en": 2, "un": 1}},
        "answered_in_another_language": 0.5,
        "frequent_first_prompts": [{"prompt": "a b", "chats": 2}],
    }
    assert list(found["languages"]["prompts"]) == ["de", "en", "fr"]  # by number, then by code
    assert list(found["languages"]["answers"]) == ["en", "un"]


def test_statistics_of_nothing_and_of_real_chats(chats: list[dict[str, Any]]) -> None:
    empty = statistics([], count_words, str)
    assert empty["chats"] == 0
    assert empty["with_system"] is None
    assert empty["lengths"]["answers"]["tokens"] is None
    from pipeline.stages.curate.language import cld2

    german = chat(
        "Was ist die Hauptstadt von Frankreich, und wie viele Menschen wohnen dort?",
        "Die Hauptstadt von Frankreich ist Paris; dort wohnen etwas mehr als zwei Millionen Menschen.",
    )
    found = statistics([*chats, german], count_words, lambda text: cld2(text)[0])
    json.dumps(found, allow_nan=False)
    assert found["turns"] == {"2": 1, "4": len(chats)}
    assert found["languages"]["answers"]["en"] > 0.9 * len(chats)
    assert found["languages"]["prompts"]["de"] == 1
    answers = sorted(
        len(m["content"].split()) for c in chats for m in c["messages"] if m["role"] == "assistant"
    )
    tokens = found["lengths"]["answers"]["tokens"]
    assert (tokens["min"], tokens["max"]) == (answers[0], answers[-1])
    assert sum(length <= tokens["p95"] for length in answers) >= 0.95 * len(answers)
    assert sum(length < tokens["p95"] for length in answers) < 0.95 * len(answers)


def test_duplicates_planted_among_real_prompts_are_found(documents: list[dict[str, Any]]) -> None:
    texts = [" ".join(d["text"].split()[:40]) for d in documents if len(d["text"].split()) >= 25]
    texts = list(dict.fromkeys(texts))[:400]
    assert len(texts) > 200
    asked = [f"Explain this to a beginner: {text}" for text in texts]
    data = [chat(text, f"Answer {i}.") for i, text in enumerate(asked)]
    exact_from, near_from = len(data), 2 * len(data)
    data += [chat(text.upper().replace(" ", "  "), "Another.") for text in asked]
    data += [chat(f"{text} Thank you!", "A third.") for text in asked]
    exact, near = duplicate_prompts(data, **SETTINGS)
    assert exact == [[i, exact_from + i] for i in range(len(asked))]
    found = {member: group[0] for group in near for member in group}
    recall = sum(found.get(near_from + i) == found.get(i, -1) for i in range(len(asked))) / len(asked)
    assert recall > 0.95
    assert all(member < exact_from or member >= near_from for group in near for member in group)
    larger = [group for group in near if len(group) > 2]
    assert len(larger) < 0.1 * len(asked)  # the library's own near-copies of a sentence


def test_a_word_changed_in_a_short_prompt_needs_short_shingles(documents: list[dict[str, Any]]) -> None:
    """The figures of ``duplicate_prompts``' docstring, on fewer sources of the same library."""
    texts = list(dict.fromkeys(" ".join(d["text"].split()[:10]) for d in documents))
    texts = [text for text in texts if len(text.split()) == 10][:300]
    words = [text.split() for text in texts]
    changed = [" ".join([*each[:5], "something", *each[6:]]) for each in words]
    data = [chat(f"Explain this: {text}", "x") for text in texts + changed]

    def recall(ngram: int) -> float:
        options = {**SETTINGS, "ngram": ngram, "threshold": 0.6}
        found = {m: group[0] for group in duplicate_prompts(data, **options)[1] for m in group}
        return sum(found.get(len(texts) + i) == found.get(i, -1) for i in range(len(texts))) / len(texts)

    assert recall(2) > 0.9
    assert recall(5) < 0.3


def test_the_prompt_is_all_turns_before_the_last_answer() -> None:
    same = [chat("Hi", "Hello", "And now?", "x"), chat("hi", "hello ", "and  NOW?", "y")]
    others = [
        chat("And now?", "z"),
        chat("Hi", "Oh", "And now?", "x"),
        chat("Hi Hello", "b", "And now?", "x"),
    ]
    exact, _ = duplicate_prompts([*others, *same], **SETTINGS)
    assert exact == [[3, 4]]


LONG = " ".join(f"rule number {i} says to be careful with {i * 7}" for i in range(60))


def test_a_shared_system_prompt_does_not_make_prompts_alike() -> None:
    asked = ["How do I sort a list of numbers in Python?", "Who wrote the first program for a computer?"]
    data = [chat(question, "x", system=LONG) for question in asked]
    assert duplicate_prompts(data, **SETTINGS) == ([], [])
    again = chat(asked[0], "y", system=f"{LONG} today")
    assert duplicate_prompts([*data, again], **SETTINGS) == ([], [[0, 2]])
    # Another system prompt asks for another answer.
    assert (
        duplicate_prompts([*data, chat(asked[0], "y", system="Answer as a pirate would.")], **SETTINGS)[1]
        == []
    )


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ("What is 3 + 4?", "What is 3 * 4?"),
        ("🙂", "🙏"),
        ("???", "!!!"),
        ("a < b", "a > b"),
        ("你好吗朋友", "你在哪里呢"),
    ],
)
def test_prompts_of_symbols_are_not_alike(one: str, two: str) -> None:
    assert duplicate_prompts([chat(one, "x"), chat(two, "y")], **SETTINGS) == ([], [])


def test_unspaced_scripts_are_compared_by_characters() -> None:
    one = "请用简单的语言解释一下为什么天空是蓝色的而不是绿色的"
    assert duplicate_prompts([chat(one, "x"), chat(one + "吗", "y")], **SETTINGS)[1] == [[0, 1]]
    assert comparable("naïve café, it's") == "naïve café, it's"


def test_the_same_bytes_with_any_hash_seed_and_any_number_of_workers(chats: list[dict[str, Any]]) -> None:
    program = (
        "import json, sys\n"
        "from pipeline.stages.curate.chats import duplicate_prompts, statistics\n"
        "chats = json.load(sys.stdin)\n"
        "found = duplicate_prompts(chats, ngram=2, permutations=64, bands=16, threshold=0.6, workers=int(sys.argv[1]))\n"
        "assert found[1]\n"
        "print(json.dumps([found, statistics(chats, len, lambda text: text[:1])]))\n"
    )
    # More than one chunk of 2,000, so that the workers share the work.
    data = json.dumps(
        [chat(f"{i % 3} {c['messages'][0]['content']} {i % 7}", "x") for i in range(8) for c in chats[:300]]
    )
    printed = set()
    for seed, workers in (("0", "1"), ("1234", "2")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program, workers]
        done = subprocess.run(
            command, input=data, capture_output=True, text=True, env=environment, check=True
        )
        printed.add(done.stdout)
    assert len(printed) == 1


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("    return x", "    return x"),
        ("\n\n    return x\n", "    return x"),
        (" \t\n\treturn x  \n\n", "\treturn x"),
        (" Paris", "Paris"),  # what separates prompt and completion
        ("  - a\n  - b", "  - a\n  - b"),
        ("a\n\n  b", "a\n\n  b"),
        ("a\r\n", "a"),
    ],
)
def test_white_space_around_a_turn(text: str, kept: str) -> None:
    """The case "awkward-chats": a leading indent stays."""
    made, _ = normalise(chat("Finish it.", text))
    assert made == chat("Finish it.", kept)
    made, _ = normalise({"instruction": "Fix.", "input": text, "output": "Done."})
    assert made == chat(f"Fix.\n\n{kept}", "Done.")


@pytest.mark.parametrize(
    ("more", "where", "said"),
    [
        ({"tools": [{"name": "f"}]}, "record", "the record describes tools in 'tools'"),
        ({"functions": [{"name": "f"}]}, "record", "the record describes tools in 'functions'"),
        ({"images": ["a.png"]}, "record", "the record has 'images'"),
        (
            {"tool_calls": [{"id": 1}]},
            "turn",
            "turn 2 (assistant) calls a tool outside its text ('tool_calls')",
        ),
        ({"function_call": {"name": "f"}}, "turn", "calls a tool outside its text ('function_call')"),
        ({"weight": 0}, "turn", "turn 2 (assistant) has 'weight' '0', and every answer is learned alike"),
        ({"loss": False}, "turn", "has 'loss' 'False'"),
        ({"train": 0.5}, "turn", "has 'train' '0.5'"),
        ({"audio": {"id": "x"}}, "turn", "turn 2 (assistant) has 'audio'"),
    ],
)
def test_what_would_change_the_lesson_is_refused_by_name(more: dict[str, Any], where: str, said: str) -> None:
    record = chat("Hello?", "Hello.")
    (record if where == "record" else record["messages"][1]).update(more)
    made, fault = normalise(record)
    assert made is None
    assert said in str(fault)


def test_what_is_not_used_is_named() -> None:
    record = Noted(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello?", "cache": 1}], "name": "Ada", "weight": 0},
                {"role": "assistant", "content": "Hello.", "thinking": "hm", "reasoning_content": "so", "weight": 1},
            ],
            "id": 7, "prompt": "Hello?", "tools": [], "images": None, "source": "", "metadata": {"a": 1},
        }
    )  # fmt: skip
    assert normalise(record) == (chat("Hello?", "Hello."), None)
    assert record.unused() == [
        "id",
        "prompt",
        "metadata",
        "part: cache",
        "turn: name",
        "turn: reasoning_content",
        "turn: thinking",
        "turn: weight",
    ]
