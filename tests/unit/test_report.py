"""The HTML report and the model card, from small manifests."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from test_record import MADE_BY, put

from pipeline.cli import main
from pipeline.report.charts import bars, line_chart, number, ticks
from pipeline.report.html import render
from pipeline.runner.store import Store

HOSTILE = "<script>alert(1)</script>"


def manifest(stage: str, **more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "recipe": "small",
        "description": "a test",
        "stage": stage,
        "identity": stage[0] * 64,
        "output_digest": "d" * 64,
        "parts": {"settings": {stage: {"lr": 0.5, "seed": 1}}},
        "parents": {},
        "inputs": {},
        "metrics": {},
        "curves": {},
        "headline": f"{stage} went well",
        "warnings": [],
        "messages": [],
        "started": "2026-11-20T10:00:00Z",
        "seconds": 61.0,
        "peak_memory_gb": 1.5,
        "attempts": [{}],
        "files": {"weights": {"bytes": 5_000_000, "sha256": "f" * 64}},
        "made_by": MADE_BY,
    }
    return {**base, **more}


CURATE = manifest(
    "curate",
    metrics={
        "documents": {
            "raw": 100,
            "kept": 90,
            "dropped": {"WordCountFilter": 7, "exact duplicate": 3, "x": 0},
        },
        "sizes": {"sft": {"train": 1000, "validation": 5, "test": 6}},
        "redacted": {"email": 2},
        "inputs": {"sources.0/docs.jsonl": {"records": 100, "unreadable": 0}},
    },
    inputs={"sources.0/docs.jsonl": {"digest": "1" * 64, "bytes": 12_345, "path": "docs.jsonl"}},
)
ALIGN = manifest(
    "align",
    parents={"data": {"stage": "curate", "identity": "c" * 64, "output_digest": "d" * 64}},
    curves={"loss": [[1, 4.0], [2, 3.5], [3, float("nan")]], "validation_margin": [[2, 0.25]]},
    attempts=[{}, {}],
)


class Outside(HTMLParser):
    """Collects everything in a page that would be fetched or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "img", "object", "embed", "base"):
            self.found.append(tag)
        self.found += [
            f"{name}={value}"
            for name, value in attrs
            if name in ("src", "href", "srcset", "data", "action") and not str(value).startswith("#")
        ]


def test_the_page_fetches_nothing_and_runs_nothing() -> None:
    page = render([CURATE, ALIGN], {})
    outside = Outside()
    outside.feed(page)
    assert not outside.found
    assert "@import" not in page
    assert "url(http" not in page


def test_what_the_record_holds_is_escaped() -> None:
    hostile = manifest(
        "train",
        headline=HOSTILE,
        warnings=[HOSTILE],
        description=HOSTILE,
        parts={"settings": {"train": {"lr": HOSTILE}}},
        curves={"loss": [[1, 2.0]]},
    )
    assert "<script" not in render([hostile], {})


def test_drops_reconcile_and_sizes_and_inputs_are_there() -> None:
    page = render([CURATE], {})
    assert "100 raw documents = 90 kept + 10 dropped" in page
    assert "7 (7.0%)" in page
    assert "12.3 kB" in page
    assert "1" * 64 in page
    assert "2 email" in page


def test_curves_resumes_and_settings_are_there() -> None:
    page = render([CURATE, ALIGN], {"align.lr": 0.1, "align.seed": 1})
    assert "<polyline" in page
    assert "reward margin" in page
    assert "in 2 attempts" in page
    assert "align.lr=0.5" in page
    assert "1 setting at its default" in page


def test_an_overridden_gate_cannot_be_missed() -> None:
    gate = {"passed": False, "checks": ["a check"], "failures": ["too bad"], "override_reason": "we know"}
    page = render([manifest("export", gate=gate)], {})
    assert "closed and overridden" in page
    assert "Reason given: we know" in page
    assert "too bad" in page


def test_the_plan_stands_beside_what_came_of_it() -> None:
    plan = {
        "place": "no NVIDIA GPU and 25 GB of memory",
        "gpus": 0,
        "layout": "1 process, micro batch 64 of 64",
        "memory_bytes": 1.2e9,
        "verdict": "fits",
        "seconds": 50.0,
        "seconds_from": "calibration",
        "seconds_error": None,
        "override_reason": None,
    }
    page = render([CURATE, manifest("train", plan=plan)], {})
    assert "two real steps" in page
    time, memory = re.findall(r"<tr><td>(?:time|memory)</td>(.*?)</tr>", page, re.DOTALL)
    assert re.findall(r'num">([^<]*)<', time) == ["50 s", "1 min 01 s", "1.22"]
    assert re.findall(r'num">([^<]*)<', memory) == ["1.2 GB", "1.5 GB", "1.25"]
    gpus = {
        **plan,
        "place": "8 x H100-80GB",
        "gpus": 8,
        "seconds_from": "model",
        "seconds_error": {"mean": 0.04, "largest": 0.15},
    }
    page = render(
        [CURATE, manifest("train", plan={**gpus, "verdict": "does not fit", "override_reason": "a <try>"})],
        {},
    )
    assert "mean held-out error 4%" in page
    assert "was overridden" in page
    assert "a &lt;try&gt;" in page
    # Of an export that was too large for main memory only the reason is known.
    page = render(
        [CURATE, manifest("export", plan={"verdict": "it holds 71 GB", "override_reason": "swap"})], {}
    )
    assert "Reason given: swap" in page


def test_a_stage_made_from_an_earlier_parent_is_pointed_out() -> None:
    words = "was made from an earlier curate"
    assert words not in render([CURATE, ALIGN], {})
    assert words in render([{**CURATE, "output_digest": "e" * 64}, ALIGN], {})


@pytest.mark.parametrize("stages", [["curate"], ["train"], ["deploy"], ["curate", "export"]])
def test_any_stage_may_be_missing(stages: list[str]) -> None:
    assert "<h2>Lineage</h2>" in render([manifest(stage) for stage in stages], {})


def test_ticks_are_round_and_span_the_values() -> None:
    for low, high in ((0, 1), (0.13, 0.92), (3.5, 3.5), (0, 0), (-2, 1e6), (1e-5, 4e-5)):
        found = ticks(low, high)
        assert found[0] <= low
        assert found[-1] >= high
        assert 2 <= len(found) <= 8
    assert [number(v) for v in (0, 0.00012, 0.5, 12345, 2.5e6)] == ["0", "1.2e-04", "0.5", "12,345", "2.5M"]


def test_nothing_to_draw_draws_nothing() -> None:
    assert line_chart("t", {}) == ""
    assert line_chart("t", {"a": [[1, float("inf")]]}) == ""
    assert bars("t", {}, 5) == ""


def test_the_verb_writes_the_file_and_refuses_an_empty_chain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "llama-tiny", "--runs", str(tmp_path)]) == 2
    assert "has published nothing" in capsys.readouterr().err
    put(Store(tmp_path, "llama-tiny"), "curate", "documents")
    assert main(["report", "llama-tiny", "--runs", str(tmp_path)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert re.search("<h1>llama-tiny</h1>", page.read_text())
