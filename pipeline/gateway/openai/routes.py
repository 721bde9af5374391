"""The routes under /v1.

A request is checked, becomes one request to the model for each of its choices, and their events become one
answer.  ``request.app.state.service`` answers (:mod:`pipeline.gateway.service`), ``request.state.caller`` asks.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Security
from fastapi.security import HTTPBearer
from starlette.responses import Response

from pipeline.gateway.openai import description
from pipeline.gateway.openai.answers import Answer, ChatAnswer, CompletionAnswer, encode
from pipeline.gateway.openai.requests import ChatRequest, CompletionRequest
from pipeline.gateway.openai.streams import collected, merged, parts
from pipeline.gateway.replies import CLIENT_GONE, EventStream, while_there

# The key is checked before any route (:mod:`pipeline.gateway.keys`); here it is described.
router = APIRouter(prefix="/v1", dependencies=[Security(HTTPBearer(auto_error=False))], tags=["OpenAI"])


@router.post(
    "/chat/completions", response_model=None, responses=description.answer(description.ChatCompletion)
)
async def chat_completions(request: Request, body: ChatRequest) -> Response:
    """Answer a conversation."""
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return await _answered(request, body, ChatAnswer, logprobs)


@router.post("/completions", response_model=None, responses=description.answer(description.Completion))
async def completions(request: Request, body: CompletionRequest) -> Response:
    """Write on from a text, or from several."""
    return await _answered(request, body, CompletionAnswer, body.logprobs)


@router.get("/models", responses={200: {"model": description.ModelList}, **description.ERRORS})
async def models(request: Request) -> Response:
    """The models that can be asked now."""
    versions = request.app.state.service.versions
    found = [_model(name, versions.created) for name in versions.models()]
    return _json(encode({"object": "list", "data": found}).encode())


# A name may have slashes.
@router.get("/models/{model:path}", responses={200: {"model": description.Model}, **description.ERRORS})
async def model(request: Request, model: str) -> Response:
    """One of them."""
    versions = request.app.state.service.versions
    versions.route(model)
    return _json(encode(_model(model, versions.created)).encode())


async def _answered(
    request: Request, body: ChatRequest | CompletionRequest, shape: type[Answer], logprobs: int | None
) -> Response:
    service = request.app.state.service
    if service.versions.models():  # without any, the service says why
        service.versions.route(body.model)
    answer_id = shape.new_id()
    asks = body.asks(answer_id, service.settings.limits.max_tokens)
    answer = shape(
        answer_id,
        body.model,
        service.versions.fingerprint(),
        choices=len(asks),
        per_prompt=body.choices,
        logprobs=logprobs,
        include_usage=body.include_usage,
    )
    events = merged([service.answer(ask, request.state.caller) for ask in asks])
    if len(asks) > 1:
        events = service.together(len(asks), request.state.caller, events)
    if body.stream:
        return EventStream(parts(events, answer))
    whole = await while_there(request.receive, collected(events, answer))
    return Response(status_code=CLIENT_GONE) if whole is None else _json(whole)


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "lifecycle"}


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
