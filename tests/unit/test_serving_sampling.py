"""How the contract chooses the next token: a request's wishes over the model's own defaults."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "deploy" / "triton" / "contract"))

from parameters import RequestError, parse
from sampling import Sampling, resolve

# As a published instruct model has them (the case base-generation-defaults).
DEFAULTS = {
    "do_sample": True,
    "eos_token_id": [2, 0],
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "repetition_penalty": 1.05,
}


def chosen(defaults: dict[str, Any] | None = None, **asked: Any) -> Sampling:
    request = parse({"text_input": "Why?", **asked})
    return resolve(request, defaults or {}, prompt_tokens=4, context=64, max_new_tokens=8)


@pytest.mark.parametrize("value", [0.0, 1.4e-45, 1e-40, 1e-39, 5e-39, 1.2e-38, 1e-30, 9e-6])
def test_a_tiny_temperature_is_greedy(value: float) -> None:
    """The case tiny-temperature: dividing by a denormal overflowed, and noise was drawn."""
    assert chosen(temperature=value).greedy
    assert chosen(DEFAULTS, temperature=value).greedy
    assert chosen({**DEFAULTS, "temperature": value}).greedy


@pytest.mark.parametrize("value", [1.4e-45, 1e-40, 1e-30, 1e-8])
def test_a_tiny_nucleus_holds_one_token(value: float) -> None:
    assert chosen(top_p=value).greedy
    assert chosen(DEFAULTS, top_p=value).greedy


@pytest.mark.parametrize(("name", "value"), [("temperature", 1e-4), ("top_p", 1e-3), ("top_k", 1)])
def test_what_can_be_computed_is_as_asked(name: str, value: float) -> None:
    found = chosen(**{name: value})
    assert not found.greedy
    assert getattr(found, name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", -1e-40),
        ("temperature", 101.0),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 1e-40),
        ("repetition_penalty", float("inf")),
        ("presence_penalty", 1e30),
    ],
)
def test_what_cannot_be_computed_is_refused(name: str, value: float) -> None:
    with pytest.raises(RequestError, match=f"^{name} is "):
        chosen(**{name: value})


def test_the_bases_own_defaults_are_what_a_request_leaves_open() -> None:
    found = chosen(DEFAULTS)
    assert (found.greedy, found.temperature, found.top_p, found.top_k) == (False, 0.7, 0.8, 20)
    assert (found.repetition_penalty, found.end_tokens) == (1.05, (2, 0))
    assert chosen(repetition_penalty=0.009999999776482582).greedy  # what 0.01 is in 32 bits
    assert chosen(DEFAULTS, temperature=0.0).repetition_penalty == 1.05
