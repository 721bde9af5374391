"""The OpenAI API of any gateway, as the official client sees it."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
import requests
from openai.types.chat import ChatCompletionChunk

from tests.gateway.conftest import Gateway

ASKED: list[Any] = [{"role": "user", "content": "What does a fox do?"}]


def test_a_conversation_is_answered(client: openai.OpenAI, gateway: Gateway) -> None:
    answer = client.chat.completions.create(model=gateway.model, messages=ASKED, max_completion_tokens=8)
    assert answer.id.startswith("chatcmpl-")
    assert (answer.object, answer.model) == ("chat.completion", gateway.model)
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("lifecycle-")
    (choice,) = answer.choices
    assert choice.index == 0
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 1 <= answer.usage.completion_tokens <= 8
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_streamed_answer_is_the_whole_one_in_parts(client: openai.OpenAI, gateway: Gateway) -> None:
    request: Any = {"model": gateway.model, "messages": ASKED, "temperature": 0, "max_tokens": 8}
    whole = client.chat.completions.create(**request)
    chunks: list[ChatCompletionChunk] = list(
        client.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    )
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    *parts, last = chunks
    assert last.choices == []
    assert last.usage == whole.usage
    assert all(chunk.usage is None for chunk in parts)
    assert parts[0].choices[0].delta.role == "assistant"
    assert all(chunk.choices[0].delta.role is None for chunk in parts[1:])
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in parts) == whole.choices[0].message.content
    )
    assert [chunk.choices[0].finish_reason for chunk in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_text_is_continued_and_streamed(client: openai.OpenAI, gateway: Gateway) -> None:
    request: Any = {"model": gateway.model, "prompt": "A fox", "temperature": 0}
    whole = client.completions.create(**request)
    assert whole.id.startswith("cmpl-")
    assert whole.usage is not None
    assert whole.usage.completion_tokens <= 16  # as at OpenAI, where nothing is said
    chunks = list(client.completions.create(**request, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.object for chunk in [*chunks, whole]} == {"text_completion"}


def test_several_choices(client: openai.OpenAI, gateway: Gateway) -> None:
    request: Any = {
        "model": gateway.model,
        "messages": ASKED,
        "n": 2,
        "temperature": 1,
        "seed": 7,
        "max_tokens": 6,
    }
    whole = client.chat.completions.create(**request)
    assert [choice.index for choice in whole.choices] == [0, 1]
    single = client.chat.completions.create(**{**request, "n": 1, "seed": 8})
    assert whole.choices[1].message.content == single.choices[0].message.content  # the seed counts up
    assert whole.usage is not None
    assert single.usage is not None
    assert whole.usage.prompt_tokens == single.usage.prompt_tokens  # of one prompt
    texts = {0: "", 1: ""}
    ends = {}
    for chunk in client.chat.completions.create(**request, stream=True):
        (choice,) = chunk.choices
        assert choice.index not in ends
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == {choice.index: choice.message.content for choice in whole.choices}
    assert ends == {choice.index: choice.finish_reason for choice in whole.choices}


def test_several_prompts(client: openai.OpenAI, gateway: Gateway) -> None:
    request: Any = {"model": gateway.model, "temperature": 0, "max_tokens": 4}
    both = client.completions.create(prompt=["A fox", "A dog and a cat"], n=2, **request)
    single = [client.completions.create(prompt=prompt, **request) for prompt in ("A fox", "A dog and a cat")]
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    texts = [answer.choices[0].text for answer in single]
    assert [choice.text for choice in both.choices] == [texts[0], texts[0], texts[1], texts[1]]
    assert both.usage is not None
    assert both.usage.prompt_tokens == sum(each.usage.prompt_tokens for each in single if each.usage)
    assert both.usage.completion_tokens == 2 * sum(
        each.usage.completion_tokens for each in single if each.usage
    )


@pytest.mark.parametrize("several", [False, True])
def test_a_stop_string_ends_the_answer_before_it(
    client: openai.OpenAI, gateway: Gateway, several: bool
) -> None:
    request: Any = {"model": gateway.model, "messages": ASKED, "temperature": 0, "max_tokens": 10}
    text = client.chat.completions.create(**request).choices[0].message.content or ""
    assert len(text) > 4, "the model says too little to be stopped"
    stop = text[2:5]
    answer = client.chat.completions.create(**request, stop=["never said", stop] if several else stop)
    assert answer.choices[0].message.content == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_of_a_chat(client: openai.OpenAI, gateway: Gateway, stream: bool) -> None:
    request: Any = {
        "model": gateway.model, "messages": ASKED, "logprobs": True, "top_logprobs": 1, "temperature": 0,
        "max_tokens": 6, "extra_body": {"repetition_penalty": 1},
    }  # fmt: skip
    if stream:
        with_usage = {"include_usage": True}
        *chunks, last = client.chat.completions.create(**request, stream=True, stream_options=with_usage)
        usage = last.usage
        told = [chunk.choices[0].logprobs for chunk in chunks]
    else:
        answer = client.chat.completions.create(**request)
        usage, told = answer.usage, [answer.choices[0].logprobs]
    tokens = [token for each in told if each for token in each.content or []]
    assert usage is not None
    assert len(tokens) == usage.completion_tokens
    for token in tokens:
        assert -9999.0 <= token.logprob <= 0
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
        assert [(top.token, top.logprob) for top in token.top_logprobs] == [(token.token, token.logprob)]


@pytest.mark.parametrize("stream", [False, True])
def test_probabilities_of_a_completion(client: openai.OpenAI, gateway: Gateway, stream: bool) -> None:
    request: Any = {
        "model": gateway.model,
        "prompt": "A fox",
        "logprobs": 0,
        "temperature": 0,
        "max_tokens": 6,
    }
    if stream:
        told = [chunk.choices[0].logprobs for chunk in client.completions.create(**request, stream=True)]
    else:
        told = [client.completions.create(**request).choices[0].logprobs]
    found = [each for each in told if each]
    tokens = [token for each in found for token in each.tokens or []]
    offsets = [offset for each in found for offset in each.text_offset or []]
    values = [value for each in found for value in each.token_logprobs or []]
    assert len(tokens) == len(offsets) == len(values) > 0
    assert offsets == [sum(map(len, tokens[:place])) for place in range(len(tokens))]
    assert all(value is not None and -9999.0 <= value <= 0 for value in values)
    assert all(each.top_logprobs is None for each in found)


def test_what_was_answered_can_be_sent_back(client: openai.OpenAI, gateway: Gateway) -> None:
    request: Any = {"model": gateway.model, "max_tokens": 4}
    first = client.chat.completions.create(messages=ASKED, **request).choices[0].message
    for turn in (first, first.model_dump()):
        again = client.chat.completions.create(messages=[*ASKED, turn, *ASKED], **request)
        assert again.choices[0].finish_reason


def test_models_are_listed(client: openai.OpenAI, gateway: Gateway) -> None:
    listed = list(client.models.list())
    assert gateway.model in [model.id for model in listed]
    assert client.models.retrieve(gateway.model) in listed
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("no-such")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_an_unknown_model_and_a_wrong_key(client: openai.OpenAI, gateway: Gateway) -> None:
    with pytest.raises(openai.NotFoundError, match="no-such") as missing:
        client.chat.completions.create(model="no-such", messages=ASKED)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(model=gateway.model, messages=ASKED)


TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}


@pytest.mark.parametrize(
    ("fields", "param", "code", "words"),
    [
        ({"tools": [TOOL]}, "tools", "unsupported_value", "not given tools"),
        ({"tool_choice": "required"}, "tool_choice", "unsupported_value", "not given tools"),
        ({"response_format": {"type": "json_object"}}, "response_format.type", "unsupported_value", "in words"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "unsupported_value", "no bias"),
        ({"modalities": ["text", "audio"]}, "modalities[1]", "unsupported_value", "write text"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_value", "do not reason"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs", "unsupported_value", "chosen token alone"),
        ({"logprobs": True, "top_logprobs": 1}, "top_logprobs", "unsupported_value", "temperature to 0"),
        ({"top_logprobs": 0}, "top_logprobs", None, "needs logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", None, "set stream"),
        ({"temprature": 0.5}, "temprature", "unknown_parameter", "unknown"),
        ({"temperature": 101}, "temperature", "invalid_value", "100"),
        ({"temperature": "hot"}, "temperature", "invalid_value", "number"),
        ({"n": 17}, "n", "invalid_value", "16"),
        ({"seed": -1}, "seed", "invalid_value", "0"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value", "1"),
        ({"stop": ["x"] * 17}, "stop", "invalid_value", "16"),
        ({"messages": []}, "messages", "invalid_value", "1 item"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter", "missing"),
        ({"messages": [{"role": "tool", "content": ""}]}, "messages[0].role", "invalid_value", "developer"),
        ({"messages": [*ASKED, {"role": "assistant", "content": "a"}]}, "messages", None, "last"),
        ({"messages": [{**ASKED[0], "name": "ann"}]}, "messages[0].name", "unsupported_value", "no names"),
        ({"messages": [{"role": "user", "content": [IMAGE]}]}, "messages[0].content[0].type", "invalid_value", "text"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "invalid_value", "string"),
    ],
)  # fmt: skip
def test_what_a_chat_may_not_ask(
    client: openai.OpenAI, gateway: Gateway, fields: dict[str, Any], param: str, code: str | None, words: str
) -> None:
    body = {"model": gateway.model, "messages": ASKED, **fields}
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": [1, 2, 3]}, "prompt[0]", "string"),
        ({"prompt": ""}, "prompt", "at least 1"),
        ({"prompt": ["a"] * 9, "n": 2}, "n", "16"),
        ({"echo": True}, "echo", "not repeated"),
        ({"suffix": "the end"}, "suffix", "not in its middle"),
        ({"best_of": 3}, "best_of", "value of n"),
        ({"logprobs": 5}, "logprobs", "chosen token alone"),
        ({"logprobs": 1}, "logprobs", "temperature to 0"),
        ({"max_completion_tokens": 5}, "max_completion_tokens", "unknown"),
    ],
)
def test_what_a_completion_may_not_ask(
    client: openai.OpenAI, gateway: Gateway, fields: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        client.post("/completions", body={"model": gateway.model, "prompt": "a", **fields}, cast_to=object)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "no JSON"),
        (b"", "JSON object"),
        (b"[]", "JSON object"),
        (b'{"model": "\xff"}', "parsing"),
        (b"[" * 100_000, "parsing"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}', "model"),
        (b'{"model": "m", "messages": [{"role": "user", "content": "\\ud800"}]}', "messages"),
        (b'{"model": "m", "\\ud800": 1, "messages": [{"role": "user", "content": "a"}]}', "param"),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
            "temperature",
        ),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "temperature": 1e999}',
            "temperature",
        ),
        (
            b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "seed": 1' + b"0" * 999 + b"}",
            "seed",
        ),
    ],
)
def test_bodies_that_cannot_be_read(gateway: Gateway, body: bytes, words: str) -> None:
    headers = {"Authorization": f"Bearer {gateway.key}", "Content-Type": "application/json"}
    answer = requests.post(f"{gateway.url}/v1/chat/completions", body, headers=headers, timeout=20)
    assert answer.status_code == 400
    assert words in answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_other_paths_methods_and_types(gateway: Gateway) -> None:
    headers = {"Authorization": f"Bearer {gateway.key}"}
    address = f"{gateway.url}/v1/chat/completions"
    body = json.dumps({"model": gateway.model, "messages": ASKED})
    plain = requests.post(address, body, headers={**headers, "Content-Type": "text/plain"}, timeout=20)
    assert plain.status_code in (400, 415)  # the API by itself, and where the whole gateway stands before it
    assert "application/json" in plain.json()["error"]["message"]
    wrong = requests.get(address, headers=headers, timeout=20)
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"]
    assert requests.get(f"{gateway.url}/v1/no-such", headers=headers, timeout=20).json()["error"]["message"]
