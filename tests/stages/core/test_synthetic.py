"""Synthetic data through a real HTTP server that speaks the protocol, and misbehaves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import KEY, ChatServer
from conftest import events, start, write_job

from pipeline import schema
from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.stages.curate.synthetic import Generated
from pipeline.stages.curate.synthetic import client as client_module
from pipeline.stages.curate.synthetic.tasks import generate, parsed
from pipeline.stages.data_sets import documents
from pipeline.stages.step import InputError

ALL = list(schema.SYNTHETIC_TASKS)


@pytest.fixture(scope="module")
def docs() -> list[dict[str, Any]]:
    found = [d for m, f in package_sources("networkx") for d in read_docstrings(m, f, "networkx")]
    return [
        {"id": d["name"], "text": d["text"], "name": d["name"], "source": "networkx", "origin": 0}
        for d in found
        if len(d["text"]) > 300
    ][:70]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    made = ChatServer()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.02)


def settings(server: ChatServer, **changes: Any) -> schema.Synthetic:
    plain = {"tasks": ALL, "address": server.address, "model": "test", "concurrency": 16, "timeout_s": 1.0}
    return schema.Synthetic(**{**plain, **changes})


def run(docs: list[dict[str, Any]], given: schema.Synthetic, folder: Path) -> Generated:
    folder.mkdir(parents=True, exist_ok=True)
    return generate(docs, given, folder, lambda _: None)


def outcome(made: Generated) -> tuple[Any, ...]:
    return made.documents, made.instructions, made.preferences


def test_all_tasks_make_what_they_promise(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path
) -> None:
    made = run(docs, settings(server), tmp_path)
    kinds = {task: [d for d in made.documents if d["id"].endswith(f"/{task}")] for task in ALL[:-1]}
    assert {task: len(found) for task, found in kinds.items()} == dict.fromkeys(ALL[:-1], len(docs))
    assert all(d["text"].startswith("A short form") for d in kinds["distil"])
    by_id = {d["id"]: d["text"] for d in docs}
    for made_of in kinds["diverse-qa"]:
        original = by_id[made_of["id"].removesuffix("/diverse-qa")]
        assert made_of["text"].startswith(original + "\n\nQuestion: ")
        assert 1 <= made_of["text"][len(original) :].count("Question:") <= 6
    assert len({d["text"].count("Question:") for d in kinds["diverse-qa"]}) > 2
    assert all(d["text"].split("\n")[0].startswith("A fact") for d in kinds["knowledge-list"])
    judged = made.dropped["pairs: the critique gives the answer less than 4"]
    assert len(made.instructions) == len(made.preferences) > 20
    assert judged > 5
    assert len(made.instructions) + judged + made.dropped["pairs: no usable answer"] == len(docs)
    assert all(p["chosen"].startswith("Yes") and p["rejected"] == "No idea." for p in made.preferences)
    assert made.figures["requests"] == sum(server.asked.values()) == made.figures["prompt_tokens"] // 100


def test_neither_order_nor_trouble_shows_in_the_outcome(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path
) -> None:
    plain = run(docs, settings(server, concurrency=1), tmp_path / "a")
    server.trouble = [429, 500, "cut", "nonsense", 503, "fine", 502, "cut", 408] * 4
    troubled = run(docs, settings(server, concurrency=16), tmp_path / "b")
    assert outcome(troubled) == outcome(plain)
    assert not any("times" in reason for reason in troubled.dropped)
    assert server.most >= 3


def test_retry_after_is_honoured_and_a_hanging_server_is_left(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path
) -> None:
    server.trouble = [429]
    given = settings(server, tasks=["distil"], concurrency=1)
    run(docs[:1], given, tmp_path / "a")
    assert server.times[1] - server.times[0] >= 1.0
    server.trouble = ["hang"] * 2
    made = run(docs[:1], dataclasses.replace(given, max_retries=1, timeout_s=0.3), tmp_path / "b")
    assert made.documents == []
    assert made.dropped["no answer in time, 2 times"] == 1
    assert made.dropped["distil: no usable answer"] == 1


@pytest.mark.parametrize(
    ("status", "words"), [(401, "the key is missing or wrong"), (404, "there is no model 'test'")]
)
def test_what_no_retry_mends_is_told_at_once(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path, status: int, words: str
) -> None:
    server.trouble = [status] * 100
    with pytest.raises(InputError, match=words):
        run(docs, settings(server, tasks=["distil"], concurrency=1), tmp_path)
    assert len(server.times) == 1


def test_the_key_is_used_and_never_told(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(InputError) as refused:
        run(docs[:1], settings(server, api_key_env="MY_KEY"), tmp_path)
    assert "environment variable MY_KEY" in str(refused.value)
    assert '"wrong"' not in str(refused.value)
    monkeypatch.setenv("MY_KEY", KEY)
    run(docs[:1], settings(server, api_key_env="MY_KEY"), tmp_path)
    assert KEY not in (tmp_path / "synthetic.jsonl").read_text()


def test_the_cap_holds_and_raising_it_goes_on(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path
) -> None:
    priced = {
        "price_per_million_prompt_tokens": 1000.0,
        "price_per_million_completion_tokens": 2000.0,
        "max_tokens": 60,
    }
    given = settings(server, tasks=["distil"], max_spend=2.0, **priced)  # an answer costs 0.2
    with pytest.raises(InputError, match=r"max_spend: [01]\.\d+ of 2 are spent"):
        run(docs, given, tmp_path)
    paid = sum(server.asked.values())
    assert 0 < paid <= 10
    made = run(docs, dataclasses.replace(given, max_spend=1000.0), tmp_path)
    assert len(made.documents) == len(docs)
    assert max(server.asked.values()) == 1  # nothing was asked twice
    assert made.figures["answers_from_the_ledger"] == paid
    assert made.figures["spent"] == pytest.approx(0.2 * len(docs))


def test_a_rate_limit_is_kept(docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path) -> None:
    run(docs[:20], settings(server, tasks=["distil"], requests_per_minute=600), tmp_path)
    times = sorted(server.times)
    assert len(times) == 20
    # 10 a second, of which a second's worth may come at once.
    assert times[-1] - times[0] >= 0.8
    assert all(times[n + 15] - times[n] > 0.35 for n in range(5))


def test_a_torn_or_damaged_ledger_costs_only_what_is_torn(
    docs: list[dict[str, Any]], server: ChatServer, tmp_path: Path
) -> None:
    given = settings(server, tasks=["distil"])
    plain = run(docs[:20], given, tmp_path)
    path = tmp_path / "synthetic.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:10]) + b"{damaged}\n" + b"".join(lines[11:-1]) + lines[-1][:20])
    again = run(docs[:20], given, tmp_path)
    assert outcome(again) == outcome(plain)
    assert sum(server.asked.values()) == 22
    assert len(path.read_bytes().splitlines()) == 21


def test_kill_and_go_on_through_the_whole_stage(
    tmp_path: Path, docs: list[dict[str, Any]], run_stage: Callable[..., Path]
) -> None:
    server = ChatServer(delay=0.02)
    with open(tmp_path / "docs.jsonl", "w") as handle:
        for doc in docs:
            handle.write(json.dumps({"text": doc["text"], "title": doc["name"]}) + "\n")
    curate = {
        "sources": [schema.Source(path=str(tmp_path / "docs.jsonl"))],
        "synthetic": settings(server, concurrency=4),
        "pairs": False,
    }
    whole = run_stage("curate", tmp_path / "whole", curate=curate) / "output"
    asked = sum(server.asked.values())
    server.asked.clear()
    job = write_job("curate", tmp_path / "w", curate=curate)
    process = start(job)
    ledger = tmp_path / "w" / "synthetic.jsonl"
    while not ledger.exists() or len(ledger.read_bytes().splitlines()) < 40:
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = start(job)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    # Asked twice at most what was under way when it was killed.
    assert asked <= sum(server.asked.values()) <= asked + 4
    server.close()
    made, other = (
        [row["id"] for row in documents(folder, "train")] for folder in (whole, tmp_path / "w" / "output")
    )
    assert made == other
    assert any(identifier.endswith("/distil") for identifier in made)
    report = json.loads((whole / "report.json").read_text())
    assert report["synthetic"]["made"] == len([i for i in made if "/" in i])
    assert not any("/" in row["id"] for split in ("validation", "test") for row in documents(whole, split))
    trained = [json.loads(line) for line in (whole / "sft" / "train.jsonl").read_text().splitlines()]
    assert len(trained) == report["synthetic"]["pairs"] > 10
    assert events(tmp_path / "w", "phase")[-1]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ('{"a": 1, "b": "x"}', {"a": "1", "b": "x"}),
        ('Sure!\n```json\n{"a": "1", "b": "x"}\n```', {"a": "1", "b": "x"}),
        ('{"a": 1}', None),
        ("no object", None),
        ("{broken", None),
        ("[1, 2]", None),
    ],
)
def test_objects_are_found_in_answers(answer: str, expected: dict[str, str] | None) -> None:
    assert parsed(answer, ("a", "b")) == expected
