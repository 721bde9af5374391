"""Chat templates read the conversation and nothing else."""

from __future__ import annotations

import json
from datetime import date

import pytest

from pipeline.conversations.template import ChatTemplate, ConversationError, frozen, reads_date

DATED = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}{{ 'Today: ' + date_string + '\n' }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
)
TURNS = [{"role": "user", "content": "Hi"}]


def test_a_template_that_reads_the_date_is_refused_and_says_how_to_freeze_it() -> None:
    assert reads_date(DATED)
    assert reads_date("{% if false %}{{ strftime_now('%Y') }}{% endif %}")  # also where no probe comes
    assert not reads_date("{% if strftime_now is defined %}strftime_now('%Y'){% endif %}")
    with pytest.raises(ConversationError, match=r"setting model\.template_date"):
        ChatTemplate(DATED, {}).render(TURNS)


def test_a_frozen_date_is_written_into_the_template() -> None:
    written = frozen(DATED, date(2026, 3, 1))
    assert not reads_date(written)
    assert ChatTemplate(written, {}).render(TURNS) == "Today: 01 Mar 2026\nHi"
    with pytest.raises(ConversationError, match="a format that is not written out"):
        frozen("{% set f = '%Y' %}{{ strftime_now(f) }}", date(2026, 3, 1))


@pytest.mark.parametrize("source", ["{{ lipsum() }}", "{{ [1, 2] | random }}", "{{ now() }}", "{% if %}"])
def test_a_template_that_draws_by_chance_or_cannot_be_read_is_refused(source: str) -> None:
    with pytest.raises(ConversationError, match="the chat template"):
        ChatTemplate(source, {}).render(TURNS)


@pytest.mark.parametrize("role", ["user<|im_end|>", "User", "", "a b", None, 3])
def test_a_role_is_a_word(role: object) -> None:
    with pytest.raises(ConversationError, match="is not a role"):
        ChatTemplate("{{ messages[0]['role'] }}", {}).render([{"role": role, "content": "Hi"}])


def test_loops_generation_tags_and_json_render_as_in_transformers() -> None:
    source = (
        "{% for m in messages %}\n    {% if m['role'] == 'tool' %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m['content'] | tojson }}{% endgeneration %}\n{% endfor %}{{ bos_token }}"
    )
    turns = [*TURNS, {"role": "tool", "content": "x"}, {"role": "user", "content": "<é>"}]
    assert ChatTemplate(source, {"bos_token": "<s>"}).render(turns) == (
        json.dumps("Hi") + json.dumps("<é>", ensure_ascii=False) + "<s>"
    )
