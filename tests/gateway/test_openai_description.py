"""The OpenAI API against its own OpenAPI description: examples that must be taken, and that must be refused."""

from __future__ import annotations

from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, settings

from pipeline.gateway.openai.requests import MOST_CHOICES
from tests.gateway.conftest import Gateway
from tests.gateway.scripted import ScriptedService, made

SHORT = 8  # characters: what the model can read in any case


def together(body: dict[str, Any], model: str) -> None:
    """Mend what JSON schema does not say of a body: the model's name, and fields that go together."""
    body["model"] = model
    for name in ("max_tokens", "max_completion_tokens", "min_tokens", "best_of"):
        body.pop(name, None)
    body["n"] = min(body.get("n") or 1, 2)
    if isinstance(body.get("prompt"), list):
        del body["prompt"][MOST_CHOICES // 2 :]
        body["prompt"] = [prompt[:SHORT] for prompt in body["prompt"]]
    elif "prompt" in body:
        body["prompt"] = body["prompt"][:SHORT]
    if not body.get("stream"):
        body.pop("stream_options", None)
    if body.get("logprobs") or body.get("top_logprobs"):
        chat = "messages" in body
        body |= {"temperature": 0, "repetition_penalty": 1, "logprobs": True if chat else body["logprobs"]}
        body.pop("presence_penalty", None)
        body.pop("frequency_penalty", None)
    else:
        body.pop("top_logprobs", None)
    if "messages" in body:
        del body["messages"][2:]
        body["messages"][-1]["role"] = "user"
        for message in body["messages"]:
            if isinstance(message["content"], list):
                del message["content"][2:]
                for part in message["content"]:
                    part["text"] = part["text"][:SHORT]
            else:
                message["content"] = message["content"][:SHORT]


# The routes' own description, asked of whatever gateway there is.  (Schemathesis 4.32 cannot take it from a fixture
# under pytest 9.2.)
schema = schemathesis.openapi.from_dict(made(ScriptedService()).openapi())


@schema.parametrize()
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_description_holds(case: Any, gateway: Gateway) -> None:
    if case.meta.generation.mode.is_positive and isinstance(case.body, dict):
        together(case.body, gateway.model)
    case.call_and_validate(base_url=gateway.url, headers={"Authorization": f"Bearer {gateway.key}"})


def test_the_description_promises_no_status_that_is_never_given(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.key}"}
    described = requests.get(f"{gateway.url}/openapi.json", headers=headers, timeout=20).json()
    for path, methods in described["paths"].items():
        if path.startswith("/v1/"):
            for operation in methods.values():
                assert "422" not in operation["responses"]
                assert {"200", "400", "401", "404", "413", "429", "500", "503", "504"} <= set(
                    operation["responses"]
                )
    assert set(described["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
