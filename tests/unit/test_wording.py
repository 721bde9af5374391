"""Figures and sentences of the record read as a person would write them, and say of a base what it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pipeline import schema
from pipeline.plan.training.layout import Layout
from pipeline.record import bases, trace
from pipeline.report.html import render
from pipeline.runner import base_record, gate, inputs
from pipeline.runner.store import Store
from pipeline.schema import flat, identity_values
from pipeline.stages.evaluate import table
from pipeline.wording import counted, fixed, parameters
from tests.unit.test_base import fitting, folder
from tests.unit.test_record import put
from tests.unit.test_report import manifest

MODEL = {
    "perplexity": 43.0,
    "answers": 1,
    "answer_loss": 4.65,
    "answer_loss_with_end": 4.5,
    "wrong_question_gap": -0.0001,
    "preference": {"style": {"summed": 0.5, "normalised": 0.5, "pairs": 1}},
    "house_style_share": 0.5,
    "distinct_answer_share": 1.0,
    "mean_answer_words": 7.0,
}
CHANGE = {
    "answer_loss": -0.0001,
    "answer_loss_ci": [-0.0002, 0.0001],
    "answer_loss_relative": -0.00001,
    "preference": {"style": {"summed": -0.0001, "summed_ci": [-0.01, 0.0001]}},
    "house_style_share": 0.0,
    "house_style_share_ci": [-0.0001, 0.0001],
}
EVALUATION: dict[str, Any] = {
    "order": ["base", "train"],
    "kinds": ["style"],
    "models": {"base": MODEL, "train": MODEL},
    "changes": {"train": CHANGE},
    "baselines": {
        "unigram_perplexity": 700.0,
        "bigram_perplexity": 80.0,
        "shorter_answer_accuracy": {"style": 0.5},
        "authors_house_style_share": 1.0,
    },
    "scored": {
        "documents": 1,
        "windows of documents": 3,
        "answers": 1,
        "style pairs": 1,
        "generated answers": 2,
    },
    "skipped": {"questions": 1},
    "parameters": {"base": 1_318_528, "train": 1_318_528},
    "answers": [],
}


def test_counts_have_their_singular() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 12_000)] == ["0 files", "1 file", "2 files", "12,000 files"]
    assert counted(2, "process", "processes") == "2 processes"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"), (950, "950"), (39_000, "39,000"), (142_464, "142,000"), (948_224, "948,000"), (999_600, "1.00M"),
        (1_318_528, "1.32M"), (134_515_008, "135M"), (999_400_000, "999M"), (8_030_261_248, "8.03B"), (70_553_706_496, "70.6B"),
        (405_853_388_800, "406B"),
    ],
)  # fmt: skip
def test_parameters_are_never_nought(number: int, words: str) -> None:
    assert parameters(number) == words


def test_no_figure_is_minus_nought() -> None:
    assert [fixed(v, 1, sign=True) for v in (-0.04, 0.0, 0.04, -0.06, 2)] == [
        "+0.0",
        "+0.0",
        "+0.0",
        "-0.1",
        "+2.0",
    ]
    assert fixed(-0.0004, 3) == "0.000"
    assert "-0.0" not in table.figures(EVALUATION)
    assert gate._points(-0.0001) == "+0.0 points"
    assert gate._percent(-0.00001) == "+0.0%"


def test_an_evaluation_counts_as_one_does_and_warns_of_small_models_only() -> None:
    text = table.markdown(EVALUATION)
    assert "Scored: 1 document, 3 windows of documents, 1 answer, 1 style pair, 2 generated answers." in text
    assert "Longer than the context and left out: 1 question." in text
    assert "A model of 1.32M parameters learns the form of an answer" in text
    large = table.markdown({**EVALUATION, "parameters": {"base": 70_553_706_496, "train": 70_553_706_496}})
    assert "learns the form" not in large
    assert "few million" not in large


def test_what_is_laid_over_processes_is_not_called_a_gpu() -> None:
    layout = Layout(gpus=1, tensor=1, pipeline=1, context=1, expert=1, micro_batch=4, global_batch=8)
    assert layout.words(False).startswith("1 process, ")
    assert layout.words().startswith("1 GPU, ")


def based(tmp_path: Path, **files: Any) -> dict[str, Any]:
    found = base_record.describe(schema.Model(base=str(folder(tmp_path / "Small-Llama", **files))))
    assert found is not None
    return found


def test_a_base_is_described_by_its_own_folder(tmp_path: Path) -> None:
    card = b"---\nlicense: apache-2.0\nlanguage: en\n---\n# Small\n"
    found = based(tmp_path, **fitting(num_hidden_layers=3, head_dim=6), **{"README.md": card})
    assert (found["name"], found["licence"], found["layers"], found["hidden_size"]) == (
        "Small-Llama",
        "apache-2.0",
        3,
        8,
    )
    assert found["parameters"] == 3 * 8 + 3 * (2 * 12 * 8 + 2 * 6 * 8 + 3 * 16 * 8 + 2 * 8) + 8
    words = bases.words_of(found)
    assert words.startswith(
        "Small-Llama, 2,096 parameters: 3 layers of width 8 (feed-forward 16), 2 heads, 1 for keys"
    )
    assert words.endswith("made for 4096 tokens; licence apache-2.0")


@pytest.mark.parametrize(
    ("files", "licence"),
    [
        (
            {"LICENSE": b"\n  LLAMA 3.1 COMMUNITY LICENSE AGREEMENT  \nmore"},
            "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT",
        ),
        ({"README.md": b"---\nlicense: other\nlicense_name: own-1.0\n---\n"}, "own-1.0"),
        ({"README.md": b"---\nlicense: [a, &b {c: *b}]\n---\n"}, None),
        ({"README.md": b"---\r\nlicense: [mit, apache-2.0]\r\n---\r\n"}, "mit, apache-2.0"),
        ({"README.md": b"\xef\xbb\xbf---\nlicense: mit\n---\n"}, "mit"),
        ({"LICENSE-MIT": b"\x1b]52;c;x\x07# <b>MIT</b> `License`\n"}, "]52;c;x # b MIT /b License"),
        ({"COPYING": b"GNU GENERAL PUBLIC LICENSE"}, "GNU GENERAL PUBLIC LICENSE"),
        ({"README.md": b"\xff\xfe"}, None),
        ({}, None),
    ],
)
def test_a_licence_is_the_cards_or_the_texts_first_line(
    tmp_path: Path, files: dict[str, Any], licence: str | None
) -> None:
    found = based(tmp_path, **files)
    assert found["licence"] == licence
    assert licence or bases.words_of(found).endswith("its folder states no licence")


def test_a_card_publishes_nothing_that_a_link_leads_to_and_waits_for_no_pipe(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hf_secret")
    base = folder(tmp_path / "base")
    (base / "LICENSE").symlink_to(tmp_path / "token")
    os.mkfifo(base / "README.md")
    os.mkfifo(base / "COPYING")
    found = base_record.describe(schema.Model(base=str(base)))
    assert found is not None
    assert found["licence"] is None
    (base / "text").write_text("MIT License")
    (base / "LICENSE.txt").symlink_to("text")
    found = base_record.describe(schema.Model(base=str(base)))
    assert found is not None
    assert found["licence"] == "MIT License"


def test_what_a_card_says_of_a_base_is_part_of_what_makes_the_export(tmp_path: Path) -> None:
    model = schema.Model(base=str(folder(tmp_path / "base", **{"README.md": b"---\nlicense: mit\n---\n"})))
    before = inputs.base_card(model)
    (tmp_path / "base" / "README.md").write_text("---\nlicense: mit\n---\nA better text\n")
    assert inputs.base_card(model) == before
    (tmp_path / "base" / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    assert inputs.base_card(model) != before
    (tmp_path / "base").rename(tmp_path / "other")
    other = inputs.base_card(schema.Model(base=str(tmp_path / "other")))
    assert other not in (before, inputs.base_card(schema.Model()))
    assert list(other) == list(before)
    assert inputs.base_card(schema.Model()) == {}


def test_report_and_trace_show_the_base_and_not_the_defaults_of_another_model(tmp_path: Path) -> None:
    base = based(tmp_path, LICENSE=b"Some licence")
    model = identity_values(schema.Model(context=512))
    step = manifest("train", base=base, parts={"settings": {"model": model, "train": {"lr": 0.5}}})
    page = render([step], flat(identity_values(schema.Recipe())))
    assert "The model starts from Small-Llama, 1,216 parameters" in page
    assert "model.context=512" in page
    assert "model.hidden_size" not in page
    assert "model.layers" not in page
    artifact = put(Store(tmp_path / "runs", "mine"), "train", "w", lr=0.5)
    artifact.manifest["base"] = base
    artifact.manifest["parts"]["settings"]["model"] = model
    shown = trace._step(artifact)
    assert not set(shown["settings"]) & bases.IDLE
    assert "starts from: Small-Llama" in trace.words_of({"asked": "mine", "steps": [shown], "gone": []})
    from_scratch = manifest("train", parts={"settings": {"model": model}})
    assert "model.hidden_size" in render([from_scratch], flat(identity_values(schema.Recipe())))


def test_the_page_is_bound_by_the_data_cards_policy_and_counts_as_one_does() -> None:
    page = render(
        [manifest("curate"), manifest("evaluate", metrics=json.loads(json.dumps(EVALUATION)))],
        {"curate.lr": 0.1, "curate.seed": 1},
    )
    folder_of_templates = Path(render.__code__.co_filename).parent
    policy = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    assert policy in (folder_of_templates / "data_card.html.j2").read_text()
    assert policy in page
    assert page.index(policy) < page.index("<title>")
    assert "1 file, " in page
    assert "1 files" not in page
    assert "1 setting at its default" in page
    assert "1 document, 3 windows of documents, 1 answer" in page
    assert "-0.0<" not in page
