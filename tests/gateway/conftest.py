"""A gateway to ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import openai
import pytest

from tests.gateway.scripted import KEY, MODEL, ScriptedService, made, serving


@dataclass(frozen=True)
class Gateway:
    """Where it is, a key that it takes, and a model that it has."""

    url: str
    key: str
    model: str


@pytest.fixture(scope="session")
def scripted() -> ScriptedService:
    return ScriptedService()


@pytest.fixture(scope="session")
def gateway(scripted: ScriptedService) -> Iterator[Gateway]:
    with serving(made(scripted)) as url:
        yield Gateway(url, KEY, MODEL)


@pytest.fixture
def client(gateway: Gateway) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0, timeout=20) as found:
        yield found
