"""The user's own conversations: one side of the split for alike prompts, and what is published is sound."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import events

from pipeline import schema
from pipeline.stages.curate.decontaminate import Grams, Screen
from pipeline.stages.curate.prompts import asked, known, sides
from pipeline.stages.curate.split import content_hash, distinct, held_out

CHANCE = random.Random(3)
WORDS = [f"w{number}" for number in range(900)]
QUESTIONS = [" ".join(CHANCE.choices(WORDS, k=9)) for _ in range(240)]
CURATE = schema.Curate(validation_share=0.1, test_share=0.2)


def chat(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    first = [{"role": "system", "content": system}] if system else []
    turns = [*first, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": question[:9], "messages": turns}


def pair(question: str, chosen: str, rejected: str = "no") -> dict[str, Any]:
    return {"id": question[:9], "prompt": question, "chosen": chosen, "rejected": rejected, "kind": "given"}


def split_of(records: list[dict[str, Any]], curate: schema.Curate = CURATE) -> list[str]:
    return sides(records, [None] * len(records), curate).splits


def test_a_prompt_is_on_one_side_of_all_files_together() -> None:
    """41 of 67 prompts of the preference test set stood in the training chats."""
    records = [chat(q, f"a {q}") for q in QUESTIONS]
    records += [pair(f"{q.upper()} !", f"good {q}") for q in QUESTIONS[::2]]
    records += [chat(q, f"b {q}", system="Answer as a pirate would.") for q in QUESTIONS[::3]]
    records += [pair(f"{q.rsplit(None, 1)[0]} other", f"other {q}") for q in QUESTIONS[::5]]  # alike
    splits = split_of(records)
    assert len(set(splits)) == 3
    found: dict[str, set[str]] = {}
    for record, split in zip(records, splits, strict=True):
        found.setdefault(known(asked(record)), set()).add(split)
    assert all(len(each) == 1 for each in found.values())
    changed = dict(zip(QUESTIONS[::5], splits[-len(QUESTIONS[::5]) :], strict=True))
    own = dict(zip(QUESTIONS, splits, strict=False))
    assert sum(own[q] != split for q, split in changed.items()) <= 1  # banding finds nearly all


def test_a_line_in_front_moves_nobody() -> None:
    records = [chat(q, f"a {q}") for q in QUESTIONS]
    more = [chat("Something quite new stands in front of the file.", "Indeed."), *records]
    assert split_of(more)[1:] == split_of(records)
    assert split_of(records[::-1]) == split_of(records)[::-1]


def test_pairs_of_documents_take_the_users_prompts_with_them() -> None:
    made = [chat(q, "of a document") for q in QUESTIONS[:30]]
    given = [("test", "train", "validation")[place % 3] for place in range(30)]
    own = [pair(f"{q}?", "of the user's") for q in QUESTIONS[:30]]
    assert sides([*own, *made], [None] * 30 + given, CURATE).splits == [*given, *given]


@pytest.mark.parametrize(("count", "others"), [(1, 0), (2, 1), (3, 2), (4, 2), (7, 2)])
def test_few_conversations_leave_no_split_empty(count: int, others: int) -> None:
    for start in range(20):
        questions = QUESTIONS[start : start + count]
        splits = split_of([chat(q, f"a {q}") for q in questions], schema.Curate())
        assert "train" in splits
        assert len(set(splits)) == others + 1
    both = [*(chat(q, f"a {q}") for q in QUESTIONS[:6]), *(pair(q, f"a {q}") for q in QUESTIONS[6:12])]
    splits = split_of(both, schema.Curate())
    assert len(set(splits[:6])) == len(set(splits[6:])) == 3


def test_answers_that_many_share_part_nobody_and_rare_ones_stay_together() -> None:
    said = "answer number {} of the desk, in so many words that it would give its question away at once"
    desk = split_of([chat(q, said.format(place % 4)) for place, q in enumerate(QUESTIONS)])
    assert len(set(desk)) == 3
    twice = split_of([chat(q, said.format(place // 2)) for place, q in enumerate(QUESTIONS)])
    assert twice[::2] == twice[1::2]
    assert len(set(twice)) == 3
    short = split_of([chat(q, f"Yes, {place // 2}.") for place, q in enumerate(QUESTIONS)])
    assert short[::2] != short[1::2]


def test_a_chain_of_alike_prompts_is_parted_and_it_is_said() -> None:
    found = sides([chat(" ".join(WORDS[n : n + 10]), f"a {n}") for n in range(200)], [None] * 200, CURATE)
    assert len(set(found.splits)) == 3
    assert "alike in a chain" in found.notes[0]


def test_documents_by_content() -> None:
    names = [content_hash("n", str(number)) for number in range(500)]
    splits = held_out(names, [1] * 500, 0.05, 0.1)
    assert held_out(names[::-1], [1] * 500, 0.05, 0.1).tolist() == splits.tolist()[::-1]
    assert held_out([1, *names], [1] * 501, 0.05, 0.1).tolist()[1:] == splits.tolist()
    few = held_out(names[:3], [40, 2, 1], 0.03, 0.07)
    assert sorted(few.tolist()) == [0, 1, 2]
    assert few[0] == 0  # not the group that is most of the data
    import numpy as np

    keys = np.array([7, 5, 7, 7, 5], dtype=np.uint64)
    found = distinct(keys)
    assert found[:2].tolist() == [7, 5]
    assert len(set(found.tolist())) == 5
    assert distinct(np.array([9, 7, 5, 7, 7, 5], dtype=np.uint64))[1:].tolist() == found.tolist()


def screened(entries: list[str], records: list[list[tuple[str, str]]]) -> list[bool]:
    settings = schema.Decontaminate()
    screen = Screen(Grams.of([("quiz", entries)], settings), records, settings)
    return [screen.owner(turns) is not None for turns in records]


def test_evaluation_data_in_conversations() -> None:
    entry = "Which of the seven bridges did the old mathematician cross twice on his walk that morning?"
    records = [
        [("user", f"A riddle: {entry}"), ("assistant", "All.")],
        [("user", "A riddle"), ("assistant", f"Here it is: {entry} Well?")],
        [("system", f"Ask this: {entry}"), ("user", "Go"), ("assistant", "Yes.")],
        [("user", "what is the capital of france"), ("assistant", "Paris.")],
        [("user", "What is the capital of France, and why?"), ("assistant", "Paris.")],
        [("user", "Another thing"), ("assistant", "Paris.")],
    ]
    assert screened([entry, "What is the capital of France?"], records) == [
        True,
        True,
        True,
        True,
        False,
        False,
    ]


def test_the_frame_of_a_data_set_is_no_evaluation_data() -> None:
    frame = "Below is an instruction that describes a task. Write a response that completes the request. "
    records = [[("system", frame), ("user", frame + q), ("assistant", "a")] for q in QUESTIONS[:40]]
    assert screened([frame + QUESTIONS[100]], records) == [False] * 40
    assert screened([frame + QUESTIONS[7]], records) == [place == 7 for place in range(40)]


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_what_is_published_is_sound_after_the_last_transformation(
    tmp_path: Path, run_stage: Callable[..., Path]
) -> None:
    """Redaction makes answers equal and empties turns; evaluation data go; all of it is counted and told."""
    (tmp_path / "note.txt").write_text("A note that is long enough to be kept by every filter there is. " * 3)
    mails = [f"{name}@example.org" for name in ("anna", "bob", "carl", "dora")]
    quiz = "Name the seven bridges that the old mathematician crossed on his walk in the morning of May"
    pairs: list[Any] = [{"prompt": q, "chosen": f"good {q}", "rejected": "bad"} for q in QUESTIONS[:40]]
    pairs += [
        {"prompt": "Whom do I write to?", "chosen": f"To {mails[0]}", "rejected": f"To {mails[1]}"},
        {"prompt": "And then?", "chosen": mails[0], "rejected": "Nobody at all."},
        {"prompt": f"Who is {mails[2]}?", "chosen": "He.", "rejected": "She."},
        {"prompt": f"Who is {mails[3]}?", "chosen": "He.", "rejected": "She."},
    ]
    chats: list[Any] = [{"prompt": q, "completion": f"It is {q}."} for q in QUESTIONS[40:80]]
    chats += [{"prompt": f"{quiz}?", "completion": "Seven."}] * 2
    chats += [{"prompt": f"What does {mail} do?", "completion": f"{mail} sells."} for mail in mails]
    scored = [
        {"prompt": q, "responses": [f"ask {mails[0]}", f"ask {mails[1]}", "no idea"], "scores": [3, 1, 2]}
        for q in QUESTIONS[80:100]
    ]
    made = run_stage(
        "curate",
        tmp_path / "w",
        curate={
            "sources": [schema.Source(kind="text", path=str(tmp_path / "note.txt"))],
            "stages": ["redact", "decontaminate"],
            "instructions": write(tmp_path / "chats.jsonl", chats),
            "preferences": write(tmp_path / "pairs.jsonl", pairs),
            "scored": schema.Scored(path=write(tmp_path / "scored.jsonl", scored)),
            "decontaminate": schema.Decontaminate(sets=[write(tmp_path / "quiz.jsonl", [{"question": quiz}])]),
            "pairs": False,
        },
    )  # fmt: skip
    output = made / "output"
    left = json.loads((output / "report.json").read_text())["left_out_of_pairs"]
    assert left["chosen and rejected are equal"] == 1
    assert left["nothing is left beside personal data"] == 1
    assert left["a pair that was there before"] == 1  # two names, one question
    assert left["a prompt that was there before"] == 1 + 3
    assert left["scored answers: answer scored more than once"] == 20  # two addresses, one answer
    assert left.get("holds evaluation data", 0) + sum(
        quiz in (output / "sft" / f"{split}.jsonl").read_text() for split in ("validation", "test")
    ) == 1  # fmt: skip
    published = {
        name: [
            (split, json.loads(line))
            for split in ("train", "validation", "test")
            for line in (output / name / f"{split}.jsonl").read_text().splitlines()
        ]
        for name in ("sft", "preference")
    }
    assert all(each["chosen"] != each["rejected"] for _, each in published["preference"])
    assert quiz not in json.dumps([each for split, each in published["sft"] if split == "train"])
    for each in published.values():
        assert len(Counter(split for split, _ in each)) == 3
    told = " ".join(event["text"] for event in events(made, "message"))
    assert "left out of the pairs: 20 scored answers: answer scored more than once" in told
    assert "1 chosen and rejected are equal" in told
    warned = " ".join(event["text"] for event in events(made, "warning"))
    assert "pretrain: nothing is held out for test" in warned  # a single document
