"""Attributes of an answer, written into its prompt (SteerLM, Dong et al. 2023, arXiv:2310.05344).

An instruction record may carry ``{"attributes": {"helpfulness": 4, "verbosity": 1}}``, whole numbers
from 0 to 4 about its last answer (the scale of HelpSteer, Wang et al. 2023, arXiv:2311.09528).
``train.attributes`` names those that fine-tuning writes behind the last user turn::

    What does the function f do?

    Attributes: helpfulness 4, verbosity 1

names in alphabetical order.  It is text in a user's turn, so that any chat template can carry it;
SteerLM's own format puts it in front of the answer, in tokens of its own.  What a record does not
carry is left out of its line; a record that carries nothing has none.

Once trained, the values are a matter of asking.  :func:`asking_template` is the tokenizer's chat
template with the line of ``evaluate.attributes`` built in, for all stages behind train, and for
the exported model: every question gets the same bytes there.  A question that brings a line of
its own keeps it.

Standard library only: the controller checks names and values with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

LOWEST, HIGHEST = 0, 4
HELPSTEER = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
MEASURED = ("verbosity",)  # attributes that curation can measure by itself
MOST_WORDS = (5, 8, 12, 20)  # of an answer of verbosity 0, 1, 2, 3
NAME = re.compile(r"[a-z][a-z0-9_]*")
BEGINS = "\n\nAttributes: "

Values = dict[str, int]
Message = dict[str, str]


def fault(values: object) -> str | None:
    """What is wrong with a record's attributes, in a sentence, or None."""
    if not isinstance(values, Mapping):
        return "'attributes' is not an object of names and values"
    for name, value in values.items():
        if not isinstance(name, str) or not NAME.fullmatch(name):
            return f"the attribute {str(name)[:40]!r} is not a name of small letters, digits and '_'"
        if isinstance(value, bool) or not isinstance(value, int) or not LOWEST <= value <= HIGHEST:
            return (
                f"the attribute {name} is {str(value)[:40]!r}, not a whole number from {LOWEST} to {HIGHEST}"
            )
    return None


def of_record(record: Mapping[str, Any]) -> tuple[Values, str | None]:
    """A record's attributes and no fault, or none and what is wrong with them.

    They are in ``attributes``, or in columns of their own where the record has all five of HelpSteer.
    """
    values: Any = record.get("attributes")
    if values is None:
        own = {name: record.get(name) for name in HELPSTEER}
        if fault(own) is not None:
            return {}, None
        values = own
    found = fault(values)
    return ({}, found) if found else (dict(sorted(values.items())), None)


def measured(names: Iterable[str], answer: str) -> Values:
    """The attributes of ``MEASURED`` among the names, from the answer's text."""
    words = len(answer.split())
    own = {"verbosity": sum(words > most for most in MOST_WORDS)}
    return {name: own[name] for name in sorted(names)}


def line(values: Mapping[str, int]) -> str:
    """What is put behind the question; nothing for no values."""
    return BEGINS + ", ".join(f"{name} {value}" for name, value in sorted(values.items())) if values else ""


def conditioned(messages: list[Message], values: Mapping[str, int]) -> list[Message]:
    """The turns with the line behind the last user turn."""
    places = [place for place, turn in enumerate(messages) if turn["role"] == "user"]
    if not values or not places:
        return messages
    turn = messages[places[-1]]
    changed = {**turn, "content": turn["content"] + line(values)}
    return [*messages[: places[-1]], changed, *messages[places[-1] + 1 :]]


def asking_template(template: str, values: Mapping[str, int]) -> str:
    """The chat template (Jinja) that puts the line of these values behind the last user turn by itself."""
    if not values:
        return template
    text = line(values).replace("\n", "\\n")
    begins = BEGINS.replace("\n", "\\n")
    asks = (
        "{%- set asked = namespace(last=-1, turns=[]) -%}"
        "{%- for turn in messages -%}{%- if turn['role'] == 'user' -%}{%- set asked.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
        "{%- for turn in messages -%}"
        f"{{%- if loop.index0 == asked.last and '{begins}' not in turn['content'] -%}}"
        f"{{%- set asked.turns = asked.turns + [{{'role': 'user', 'content': turn['content'] + '{text}'}}] -%}}"
        "{%- else -%}{%- set asked.turns = asked.turns + [turn] -%}{%- endif -%}{%- endfor -%}"
        "{%- set messages = asked.turns -%}"
    )
    return asks + template
