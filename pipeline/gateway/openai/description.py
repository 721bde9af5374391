"""The answers of the API as its OpenAPI description tells of them; nothing is checked against these at run time."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel


class Error(BaseModel):
    """What went wrong; ``param`` is the field of the request that did."""

    message: str
    type: Literal["invalid_request_error", "server_error"]
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: Error


class Usage(BaseModel):
    """Tokens; several choices share their prompt."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """``bytes`` is null where a token is part of a character only."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None


class AssistantMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]


class Completion(BaseModel):
    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class Model(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"]
    data: list[Model]


def _header(name: str, kind: str, meaning: str) -> dict[str, Any]:
    return {"headers": {name: {"description": meaning, "schema": {"type": kind}}}}


_RETRY = _header("Retry-After", "integer", "seconds after which to try again")
_REASONS: dict[int | str, tuple[str, dict[str, Any]]] = {
    400: ("the request is wrong; `param` says where", {}),
    401: ("no API key, or a wrong one", _header("WWW-Authenticate", "string", "Bearer")),
    404: ("there is no such model", {}),
    413: ("the body is too large", {}),
    429: ("too many requests with this API key", _RETRY),
    "4XX": ("any other fault of the request", {}),
    500: ("the model's side failed", {}),
    503: ("nobody can answer now", _RETRY),
    504: ("the answer did not come in time", {}),
}
# 4XX besides keeps FastAPI from describing its own 422, which nobody gets.
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description, **headers}
    for status, (description, headers) in _REASONS.items()
}


def answer(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that answers whole, or as server-sent events where ``stream`` is set."""
    event = {
        "type": "object",
        "description": f"data: a part of the answer (`{model.__name__}` with what is new), an error, or [DONE]",
        "properties": {"data": {"type": "string"}},
        "required": ["data"],
    }
    found = {"model": model, "description": "the answer", "content": {"text/event-stream": {"schema": event}}}
    return {200: found, **ERRORS}
