"""The OpenAI API in front of a service whose answers are known: mapping, exact shapes, errors, and who is cancelled."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import requests
from openai.types import completion_create_params as completion_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import ValidationError

from pipeline.gateway.errors import GatewayError
from pipeline.gateway.openai.requests import ChatRequest, CompletionRequest
from tests.gateway.conftest import Gateway
from tests.gateway.scripted import KEY, LARGEST_BODY, MODEL, WORDS, ScriptedService, made, serving


@pytest.fixture(scope="module")
def gateway(scripted: ScriptedService) -> Iterator[Gateway]:
    """The scripted one alone: here it matters what the service says."""
    with serving(made(scripted)) as url:
        yield Gateway(url, KEY, MODEL)


ASKED: list[Any] = [{"role": "user", "content": "What does a fox do?"}]


def ending(word: str) -> list[Any]:
    return [{"role": "user", "content": f"This request {word}"}]


def until(condition: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_what_the_model_is_asked() -> None:
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "wörld"}]
    body = {
        "model": "m", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_tokens": 1, "max_tokens": 3,
        "max_completion_tokens": 7, "repetition_penalty": 1.1, "presence_penalty": 1, "frequency_penalty": -1,
        "ignore_eos": True, "stop": "end", "logprobs": True, "seed": 2**32 - 1, "n": 2, "user": "u", "store": True,
        "messages": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
    }  # fmt: skip
    first, second = ChatRequest.model_validate(body).asks("chatcmpl-1")
    messages = json.loads(first.inputs.pop("messages"))
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello, wörld"},
    ]
    assert (first.model, first.api) == ("m", "chat")
    assert first.inputs == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_tokens": 1, "max_tokens": 7, "repetition_penalty": 1.1,
        "presence_penalty": 1, "frequency_penalty": -1, "ignore_end": True, "stop_words": ["end"], "logprobs": True,
        "seed": 2**32 - 1, "request_id": "chatcmpl-1-0",
    }  # fmt: skip
    assert (second.inputs["seed"], second.inputs["request_id"]) == (0, "chatcmpl-1-1")


def test_what_is_not_said_is_left_to_the_model() -> None:
    (ask,) = ChatRequest.model_validate({"model": "m", "messages": ASKED}).asks("chatcmpl-1")
    assert set(ask.inputs) == {"messages", "request_id"}
    nothing = {
        "tools": [],
        "logit_bias": {},
        "logprobs": False,
        "stop": [],
        "ignore_eos": False,
        "audio": None,
    }
    (ask,) = ChatRequest.model_validate({"model": "m", "messages": ASKED, **nothing}).asks("chatcmpl-1")
    assert set(ask.inputs) == {"messages", "request_id"}
    (ask,) = CompletionRequest.model_validate({"model": "m", "prompt": "a"}).asks("cmpl-1")
    assert ask.inputs == {"prompt": "a", "max_tokens": 16, "request_id": "cmpl-1-0"}


def test_choices_without_a_seed_differ() -> None:
    request = CompletionRequest.model_validate({"model": "m", "prompt": ["a", "b"], "n": 3})
    several = request.asks("cmpl-1")
    seeds = [ask.inputs["seed"] for ask in several]
    assert seeds != [ask.inputs["seed"] for ask in request.asks("cmpl-2")]
    assert len(set(seeds[:3])) == 3
    assert seeds[:3] == seeds[3:]
    assert len({ask.inputs["request_id"] for ask in several}) == 6


def test_every_parameter_of_the_official_client_has_a_fate() -> None:
    for params, model in ((chat_params, ChatRequest), (completion_params, CompletionRequest)):
        known = set(params.CompletionCreateParamsStreaming.__annotations__)
        assert known - set(model.model_fields) == set()


def test_types_are_taken_as_written() -> None:
    for field, value in (("stream", "true"), ("n", True), ("n", 1.5), ("temperature", "1"), ("prompt", 5)):
        with pytest.raises(ValidationError):
            CompletionRequest.model_validate({"model": "m", "prompt": "a", field: value})
    assert CompletionRequest.model_validate({"model": "m", "prompt": "a", "n": 2.0, "temperature": 1}).n == 2


def test_parts_of_characters_and_improbable_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="assistant", messages=ASKED, logprobs=True)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    tokens = logprobs.content or []
    assert answer.choices[0].message.content == "".join(WORDS)
    assert [token.token for token in tokens] == WORDS
    assert [token.logprob for token in tokens][:4] == [-0.5, -0.5, -9999.0, -0.5]
    assert tokens[9].bytes == [0xC3, 0xB6]
    assert tokens[11].bytes is None
    assert all(token.top_logprobs == [] for token in tokens)


def test_who_asks_and_what_reaches_the_service(client: openai.OpenAI, scripted: ScriptedService) -> None:
    answer = client.chat.completions.create(model="org/other", messages=ASKED, max_tokens=1)
    assert scripted.asked[-1].model == answer.model == "org/other"
    assert scripted.asked[-1].inputs["request_id"] == f"{answer.id}-0"
    assert scripted.callers[-1].name == "tests"
    assert client.models.retrieve("org/other").id == "org/other"


@pytest.mark.parametrize(
    ("word", "kind", "status"),
    [
        ("unavailable", openai.InternalServerError, 503),
        ("limited", openai.RateLimitError, 429),
        ("long", openai.BadRequestError, 400),
        ("breaks", openai.InternalServerError, 500),
        ("cancelled", openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_errors_become_the_clients(
    client: openai.OpenAI, word: str, kind: type[openai.APIStatusError], status: int, stream: bool, n: int
) -> None:
    began = word in ("breaks", "cancelled")
    wanted = openai.APIError if stream and began else kind
    texts: list[str | None] = []

    def ask() -> None:
        asked: Any = {"model": "assistant", "messages": ending(word), "n": n, "temperature": 0}
        answer = client.chat.completions.create(**asked, stream=stream)
        texts.extend(chunk.choices[0].delta.content for chunk in answer)

    with pytest.raises(wanted) as caught:
        ask()
    if stream and began:
        assert not isinstance(caught.value, openai.APIStatusError)
        assert sorted(text for text in texts if text) == sorted(["The", " quick", " brown"] * n)
    else:
        assert texts == []
        assert getattr(caught.value, "status_code", None) == status
    assert caught.value.message


def streamed(gateway: Gateway, word: str, **fields: Any) -> list[str]:
    body = {"model": gateway.model, "messages": ending(word), "stream": True, **fields}
    headers = {"Authorization": f"Bearer {gateway.key}"}
    answer = requests.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=20)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.text.endswith("\n\n")
    return answer.text.removesuffix("\n\n").split("\n\n")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("breaks", "the server went away"),
        ("crashes", "the gateway failed in the middle of the answer"),
        ("cancelled", "the answer was cancelled on the server"),
    ],
)
def test_an_error_in_a_stream_is_told_and_ends_it(gateway: Gateway, word: str, message: str) -> None:
    *_, told, done = streamed(gateway, word, stream_options={"include_usage": True})
    assert json.loads(told.removeprefix("data: "))["error"]["message"] == message
    assert json.loads(told.removeprefix("data: "))["error"]["type"] == "server_error"
    assert done == "data: [DONE]"


def test_the_stream_as_it_is_on_the_wire(gateway: Gateway) -> None:
    first, second, *_, last, usage, done = streamed(gateway, "ends", stream_options={"include_usage": True})
    found = json.loads(first.removeprefix("data: "))
    assert set(found) == {"id", "object", "created", "model", "system_fingerprint", "choices", "usage"}
    role = {"role": "assistant", "content": "", "refusal": None}
    assert found["choices"] == [{"index": 0, "delta": role, "logprobs": None, "finish_reason": None}]
    found = json.loads(second.removeprefix("data: "))
    assert found["choices"] == [
        {"index": 0, "delta": {"content": "The"}, "logprobs": None, "finish_reason": None}
    ]
    assert json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    found = json.loads(usage.removeprefix("data: "))
    assert found["choices"] == []
    assert found["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
    assert done == "data: [DONE]"


def test_closing_a_stream_cancels_every_choice(client: openai.OpenAI, scripted: ScriptedService) -> None:
    for n in (1, 3):
        stream = client.chat.completions.create(
            model="assistant", messages=ending("stalls"), stream=True, n=n
        )
        ids = {next(iter(stream)).id}
        stream.close()
        wanted = {f"{answer_id}-{place}" for answer_id in ids for place in range(n)}
        assert until(lambda wanted=wanted: wanted <= set(scripted.closed))


@pytest.mark.parametrize("word", ["queued", "stalls"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_a_client_that_goes_while_it_waits_cancels(
    client: openai.OpenAI, scripted: ScriptedService, word: str, stream: bool, n: int
) -> None:
    before = len(scripted.asked)
    with pytest.raises(openai.APITimeoutError):  # the client's own patience, and it closes the connection
        list(
            client.with_options(timeout=0.5).chat.completions.create(
                model="assistant", messages=ending(word), stream=stream, n=n
            )
        )
    ids = {ask.inputs["request_id"] for ask in scripted.asked[before:]}
    assert len(ids) == n
    assert until(lambda: ids <= set(scripted.closed))


def test_a_choice_that_fails_ends_the_others(client: openai.OpenAI, scripted: ScriptedService) -> None:
    with pytest.raises(openai.InternalServerError, match="went away"):
        client.completions.create(model="assistant", prompt=["This breaks", "This stalls"])
    stalled = scripted.asked[-1].inputs
    assert stalled["prompt"] == "This stalls"
    assert until(lambda: stalled["request_id"] in scripted.closed)


def test_without_any_version_the_service_says_why(client: openai.OpenAI, scripted: ScriptedService) -> None:
    current, scripted.versions.current = scripted.versions.current, None
    try:
        with pytest.raises(openai.InternalServerError, match="no version is up"):
            client.chat.completions.create(model="assistant", messages=ending("unavailable"))
    finally:
        scripted.versions.current = current


def test_a_body_that_is_too_large(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APIStatusError, match="more than") as caught:
        client.completions.create(model="assistant", prompt="a" * LARGEST_BODY)
    assert (caught.value.status_code, caught.value.code) == (413, "too_large")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [1] * 1_000},
        {"messages": [{"role": "user", "content": [{}] * 1_000}]},
        {"messages": ASKED, "modalities": [1] * 1_000},
        {"messages": ASKED, "stop": [1] * 1_000},
        {"messages": ASKED} | {f"{name:x}": 1 for name in range(1_000)},
        {"messages": [{f"{name:x}": 1 for name in range(1_000)}]},
    ],
)
def test_of_many_mistakes_few_are_noted(fields: dict[str, Any]) -> None:
    # Half a million fit into a body; noting them all held up everyone's answers for seven seconds.
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate({"model": "m", **fields})
    assert caught.value.error_count() <= 3


def test_fields_that_do_not_go_together_are_the_clients_fault() -> None:
    with pytest.raises(GatewayError) as caught:
        CompletionRequest.model_validate({"model": "m", "prompt": "a", "best_of": 2}).asks("cmpl-1")
    assert caught.value.status == 400
    assert CompletionRequest.model_validate({"model": "m", "prompt": "a", "best_of": 2, "n": 2}).asks(
        "cmpl-1"
    )
