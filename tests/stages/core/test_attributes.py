"""Attribute-conditioned fine-tuning: the same bytes in training and in asking, and answers that change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import load_step, write_job
from transformers import PreTrainedTokenizerFast

from pipeline import attributes, schema
from pipeline.engines.automodel import tokenise
from pipeline.engines.automodel.examples import IGNORED
from pipeline.stages import train
from pipeline.stages.step import InputError, read_jsonl

TEMPLATES = {
    "own": None,
    "takes the system turn off, trims": (
        "{%- if messages[0]['role'] == 'system' -%}{%- set head = messages[0]['content'] -%}"
        "{%- set messages = messages[1:] -%}{%- else -%}{%- set head = 'Be brief.' -%}{%- endif -%}"
        "{{ '<s>' + head }}{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] | trim + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
    ),
    "knows no system turn": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "{{ '[' + ('model' if message['role'] == 'assistant' else message['role']) + ']\\n' + message['content'] + eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '[model]\\n' }}{% endif %}"
    ),
}
CHAT = [
    {"role": "user", "content": "What does f do?"},
    {"role": "assistant", "content": "Return it."},
    {"role": "user", "content": "And {{ g }} or 'h'?"},
]


@pytest.fixture
def tokenizer(curated: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")


@pytest.mark.parametrize("name", TEMPLATES)
def test_asking_gives_the_bytes_of_training(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    plain = TEMPLATES[name] or tokenizer.chat_template
    values = {"verbosity": 3, "helpfulness": 4}

    def rendered(template: str, messages: list[dict[str, str]], **options: Any) -> str:
        return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))

    asking = attributes.asking_template(plain, values)
    for messages in (CHAT[:1], CHAT):
        wanted = rendered(plain, attributes.conditioned(messages, values), add_generation_prompt=True)
        assert "Attributes: helpfulness 4, verbosity 3" in wanted
        assert rendered(asking, messages, add_generation_prompt=True) == wanted
    # Who asks for other values in the question gets those.
    own = attributes.conditioned(CHAT, {"verbosity": 0})
    assert rendered(asking, own, add_generation_prompt=True) == rendered(
        plain, own, add_generation_prompt=True
    )
    assert attributes.asking_template(plain, {}) == plain
    tokenizer.chat_template = asking
    tokenise.check_template(tokenizer)


def test_only_what_is_asked_for_is_written_and_none_of_it_is_learned(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    answered = [*CHAT[:1], {"role": "assistant", "content": "Return it."}]
    records = [
        {"messages": answered, "attributes": {"verbosity": 1, "complexity": 2}},
        {"messages": answered},
    ]
    made, counts = tokenise.instruction_examples(tokenizer, records, 256, attributes=["verbosity", "humour"])
    assert counts["with_attributes"] == 1
    first = made.inputs[: int(made.offsets[1])].tolist()
    assert "What does f do?\n\nAttributes: verbosity 1<|im_end|>" in tokenizer.decode(first)
    learned = [label for label in made.labels.tolist() if label != IGNORED]
    assert tokenizer.decode(learned) == "Return it.<|im_end|>" * 2
    plain, _ = tokenise.instruction_examples(tokenizer, [{"messages": answered}] * 2, 256)
    without, _ = tokenise.instruction_examples(tokenizer, records, 256)
    assert without.inputs.tolist() == plain.inputs.tolist()


def test_curation_keeps_and_measures_them(tmp_path: Path, run_stage: Callable[..., Path]) -> None:
    (tmp_path / "notes").mkdir()
    for number in range(30):
        text = f"Note {number} is about the fog over harbour {number} and about what the pilots of ship {number} do then."
        (tmp_path / "notes" / f"{number}.txt").write_text(text)
    given = [
        {"prompt": "What of fog?", "completion": "Wait for it to lift.", "attributes": {"verbosity": 4}},
        {"prompt": "What of rain?", "completion": "Sail on."},
        {"prompt": "What of snow?", "completion": "Stay in.", "attributes": {"verbosity": 9}},
    ]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in given))
    curate = {
        "sources": [schema.Source(kind="text", path=str(tmp_path / "notes"))],
        "stages": ["UnicodeReformatter"],
        "instructions": str(tmp_path / "chats.jsonl"),
        "attributes": ["verbosity"],
        "max_bad_share": 0.5,
        "pairs": False,
    }
    work = run_stage("curate", tmp_path / "w", curate=curate)
    records = [
        r
        for split in ("train", "validation", "test")
        for r in read_jsonl(work / "output" / "sft" / f"{split}.jsonl")
    ]
    found = {record["messages"][0]["content"]: record["attributes"] for record in records}
    assert found == {"What of fog?": {"verbosity": 4}, "What of rain?": {"verbosity": 0}}
    told = (work / "output" / "quarantine.jsonl").read_text()
    assert "not a whole number from 0 to 4" in told


def test_attributes_that_no_record_has_are_told(tmp_path: Path, curated: Path, pretrained: Path) -> None:
    inputs = {"data": curated, "pretrain": pretrained}
    job = write_job("train", tmp_path / "w", inputs, train={"attributes": ["verbosity"]})
    with pytest.raises(InputError, match=r"or have them measured \(curate.attributes\)"):
        train.run(load_step(job))
