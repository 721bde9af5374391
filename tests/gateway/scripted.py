"""A service whose answers are known, behind the OpenAI routes on a loopback port: for the tests of shapes.

It follows the seam of ``pipeline/gateway/service.py``.  The last word of a prompt says what becomes of the request.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.gateway.app import handle_errors
from pipeline.gateway.asks import Ask, Caller, Event
from pipeline.gateway.errors import GatewayError, failed, invalid, unavailable
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.openai import router
from pipeline.gateway.settings import Settings, VersionSettings
from pipeline.gateway.versions import Versions

T = TypeVar("T")
MODEL = "assistant"
KEY = "a-key-of-the-tests"
LARGEST_BODY = 1_048_576
WORDS = ["The", " quick", " brown", " fox", " jumps", " over", " the", " lazy", " d", "ö", "g", " \ufffd"]
BEFORE = {  # said before the model takes the request
    "unavailable": unavailable("no version is up", retry_after=0.01),
    "limited": GatewayError(429, "slow down", code="rate_limit_exceeded", retry_after=0.01),
    "long": invalid("the prompt has 9 tokens; the model reads 8", "messages", "context_length_exceeded"),
}


def scripted_versions() -> Versions:
    """The gateway's own record of versions, of one that knows two names."""
    models = {name: {"model": MODEL, "lora": ""} for name in (MODEL, "org/other")}
    return Versions(VersionSettings("0123456789ab" * 5, "127.0.0.1:1", "127.0.0.1:2", models))


@dataclass
class ScriptedService:
    """``asked`` and, by ``request_id``, those that were ``closed`` before their end."""

    versions: Versions = field(default_factory=scripted_versions)
    asked: list[Ask] = field(default_factory=list)
    callers: list[Caller] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)
    settings: Settings = field(default_factory=Settings)
    metrics: Metrics = field(default_factory=Metrics)

    async def answer(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
        self.asked.append(ask)
        self.callers.append(caller)
        try:
            async for event in self._events(ask.inputs):
                yield event
        except (GeneratorExit, asyncio.CancelledError):
            self.closed.append(ask.inputs["request_id"])
            raise

    async def together(
        self, weight: int, caller: Caller, events: AsyncGenerator[T, None]
    ) -> AsyncGenerator[T, None]:
        async with aclosing(events):
            async for event in events:
                yield event

    async def _events(self, inputs: dict[str, Any]) -> AsyncGenerator[Event, None]:
        prompt = inputs["prompt"] if "prompt" in inputs else json.loads(inputs["messages"])[-1]["content"]
        script = (prompt.split() or [""])[-1]
        if script in BEFORE:
            raise BEFORE[script]
        if script == "queued":
            await asyncio.sleep(60)
        count = len(prompt.split())
        yield Event(prompt_tokens=count)
        turn = 0 if inputs.get("temperature") == 0 else inputs.get("seed", 0)
        words = WORDS[turn % len(WORDS) :] + WORDS[: turn % len(WORDS)]
        length = min(inputs.get("max_tokens", len(words)), len(words))
        whole = "".join(words[:length])
        cut = min((whole.index(stop) for stop in inputs.get("stop_words", []) if stop in whole), default=None)
        characters = 0
        for place, word in enumerate(words[:length]):
            await asyncio.sleep(0)
            if place == 3 and script == "breaks":
                raise failed("the server went away")
            if place == 3 and script == "crashes":
                raise KeyError("a mistake of the gateway's own")
            if place == 3 and script == "cancelled":
                yield Event(finish_reason="cancelled", completion_tokens=place)
                return
            if place == 3 and script == "stalls":
                await asyncio.sleep(60)
            characters += len(word)
            if cut is not None and characters > cut:
                word = word[: len(word) - characters + cut]
                yield Event(word, "stop", prompt_tokens=count, completion_tokens=place + 1)
                return
            yield Event(
                word,
                "length" if place == length - 1 else "",
                completion_tokens=place + 1,
                logprobs=[(word, float("-inf") if place == 2 else -0.5)] if inputs.get("logprobs") else [],
            )


class Doorkeeper:
    """What the gateway's own middleware does before a route: the key, who asks, and the size of a body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            if dict(scope["headers"]).get(b"authorization") != f"Bearer {KEY}".encode():
                error = GatewayError(401, "a valid API key is needed", code="invalid_api_key")
                await JSONResponse(error.openai(), 401, error.headers())(scope, receive, send)
                return
            scope.setdefault("state", {})["caller"] = Caller("tests")
        read = 0

        async def bounded() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > LARGEST_BODY:
                raise GatewayError(413, f"the body has more than {LARGEST_BODY} bytes", code="too_large")
            return message

        await self.app(scope, bounded, send)


def made(service: ScriptedService) -> FastAPI:
    """The application: the routes, what handles their errors, and the doorkeeper before them."""
    app = FastAPI(title="gateway", version="1")
    app.state.service = service
    app.include_router(router)
    handle_errors(app)
    app.add_middleware(Doorkeeper)
    return app


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a loopback port, in a thread; its address."""
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, loop="uvloop", http="httptools", log_level="warning"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
