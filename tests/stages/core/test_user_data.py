"""The user's own instruction and preference data on their way through curation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import events, start, write_job

from pipeline import schema
from pipeline.stages.curate.harvest import package_sources, read_docstrings


@pytest.fixture(scope="module")
def docs() -> list[dict[str, Any]]:
    found = [d for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    return [d for d in found if 8 < len(d["text"].split()) < 60][:300]


def write(path: Path, records: list[Any]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything(folder: Path) -> list[dict[str, Any]]:
    return [record for split in ("train", "validation", "test") for record in read(folder / f"{split}.jsonl")]


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory, docs: list[dict[str, Any]], run_stage: Callable[..., Path]
) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "notes").mkdir()
    for number, doc in enumerate(docs[:80]):
        (folder / "notes" / f"{number}.txt").write_text(doc["text"])
    chats: list[Any] = [
        {
            "messages": [
                {"role": "user", "content": f"What does `{d['name']}` do?"},
                {"role": "assistant", "content": d["text"]},
            ]
        }
        for d in docs[:100]
    ]
    chats += [
        {"instruction": f"Explain {d['name']}.", "input": "", "output": d["text"]} for d in docs[100:150]
    ]
    chats += [
        {
            "conversations": [
                {"from": "human", "value": f"Tell me of {d['name']}"},
                {"from": "gpt", "value": d["text"]},
            ]
        }
        for d in docs[150:200]
    ]
    chats += [chats[0], chats[1]]  # equal prompts
    chats += [
        {"id": 7, "messages": [{"role": "user", "content": "Write it all"}, {"role": "assistant", "content": "So " * 300, "thinking": "hm"}]},
        {"messages": [{"role": "user", "content": "long"}, {"role": "assistant", "content": "word " * 2000}]},
        {"messages": [{"role": "user", "content": "no answer"}]},
        {"messages": [{"role": "user", "content": "Write to me@example.org"}, {"role": "assistant", "content": "Done."}]},
    ]  # fmt: skip
    pairs: list[Any] = [
        {
            "prompt": f"Sum up {d['name']}",
            "chosen": d["text"] + " That is all there is to say of it.",
            "rejected": d["text"][:30],
        }
        for d in docs[200:260]
    ]
    pairs += [{"prompt": "x", "chosen": "same", "rejected": "same"}]
    scored = [
        {"prompt": f"Describe {d['name']}", "responses": [d["text"], d["text"][:20], "I do not know."], "scores": [0.9, 0.4, 0.1]}
        for d in docs[260:300]
    ]  # fmt: skip
    settings = {
        "sources": [schema.Source(kind="text", path=str(folder / "notes"))],
        "instructions": write(folder / "chats.jsonl", chats),
        "preferences": write(folder / "pairs.jsonl", pairs),
        "scored": schema.Scored(path=write(folder / "scored.jsonl", scored), pairs_per_prompt=1),
        "pairs": False,
        "chat_tokens": 1000,
        "max_bad_share": 0.05,
    }
    return run_stage("curate", folder / "w", curate=settings) / "output"


def test_every_form_becomes_a_chat_and_nothing_is_lost_unseen(made: Path) -> None:
    chats = everything(made / "sft")
    report = json.loads((made / "report.json").read_text())
    assert len(chats) == 202 - report["left_out_of_pairs"].get("held-out answer also in training", 0)
    assert report["instructions"]["equal_prompts"] == 2
    assert report["left_out_of_pairs"]["a prompt that was there before"] == 2
    assert report["instructions"]["chats"] == 204
    assert report["instructions"]["languages"]["answers"]["en"] > 100
    assert report["unused_fields"]["instructions"] == {"id": 1, "turn: thinking": 1}
    assert any("Write to <EMAIL>" in chat["messages"][0]["content"] for chat in chats)
    reasons = {
        fault["line"]: fault["reason"]
        for fault in read(made / "quarantine.jsonl")
        if fault["input"] == "instructions"
    }
    assert "turn 2 (assistant) has" in reasons[204]
    assert "answer" in reasons[205]


def test_pairs_and_scored_answers(made: Path) -> None:
    pairs = everything(made / "preference")
    report = json.loads((made / "report.json").read_text())
    assert report["preferences"]["pairs"] == 100
    assert report["preferences"]["length"]["chosen_longer"] == 1.0
    assert any("longer" in warning for warning in report["preferences"]["warnings"])
    described = [pair for pair in pairs if pair["prompt"].startswith("Describe")]
    assert described
    assert all(pair["rejected"] == "I do not know." for pair in described)
    assert [f["reason"] for f in read(made / "quarantine.jsonl") if f["input"] == "preferences"]


def test_alike_prompts_stay_on_one_side(tmp_path: Path, run_stage: Callable[..., Path]) -> None:
    (tmp_path / "note.txt").write_text(
        "A note that is long enough to be kept by every filter there is here. " * 3
    )
    chats = []
    for number in range(40):
        subject = (
            f"bridge number {number} over the river {number * 7} near the town of {chr(97 + number % 26) * 6}"
        )
        for ask in ("How long is the", "How very long is the", "How long then is the"):
            chats.append(
                {
                    "prompt": f"{ask} {subject} that was built in {1800 + number}?",
                    "completion": f"{ask} {number}",
                }
            )
    settings = {
        "sources": [schema.Source(kind="text", path=str(tmp_path / "note.txt"))],
        "instructions": write(tmp_path / "chats.jsonl", chats),
        "pairs": False, "test_share": 0.3,
    }  # fmt: skip
    made = run_stage("curate", tmp_path / "w", curate=settings) / "output"
    sides: dict[str, set[str]] = {}
    for split in ("train", "validation", "test"):
        for record in read(made / "sft" / f"{split}.jsonl"):
            sides.setdefault(record["messages"][0]["content"].split("built in")[1], set()).add(split)
    assert len(sides) == 40
    assert all(len(splits) == 1 for splits in sides.values())
    settings["prompts"] = schema.Prompts(repeats="drop-alike")
    made = run_stage("curate", tmp_path / "w2", curate=settings) / "output"
    assert 20 <= len(everything(made / "sft")) <= 40  # bridges of like numbers are alike, too


def test_too_many_bad_records_of_the_users_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text(
        "A note that is long enough to be kept by every filter there is here. " * 3
    )
    settings = {
        "sources": [schema.Source(kind="text", path=str(tmp_path / "note.txt"))],
        "instructions": write(
            tmp_path / "chats.jsonl", [{"messages": []}, {"prompt": "a", "completion": "b"}]
        ),
    }
    process = start(write_job("curate", tmp_path / "w", curate=settings))
    process.communicate(timeout=100)
    assert process.returncode == 2
    assert "chats.jsonl:1: " in events(tmp_path / "w", "error")[0]["text"]
