"""The gateway's HTTP: who may come in, the protocols, and what a client is told when something goes wrong."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import pipeline
from pipeline import strict_json
from pipeline.gateway import browsers, kserve, openai
from pipeline.gateway.asks import Caller
from pipeline.gateway.errors import GatewayError, invalid, too_large
from pipeline.gateway.keys import Keys, authorised
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.replies import CLIENT_GONE
from pipeline.gateway.service import Service
from pipeline.gateway.settings import Limits

MOST_DIGITS = 18  # of a length; Python refuses to read a number of thousands
OPEN = ("/health", "/ready", "/v2/health/live", "/v2/health/ready")  # without a key


def build(service: Service, keys: Keys | None) -> ASGIApp:
    """The whole application."""
    app = FastAPI(
        title="nemo-lifecycle gateway",
        version=pipeline.__version__,
        description="OpenAI's API, and Triton's and KServe's, in front of one model.",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service
    app.include_router(openai.router)
    app.include_router(kserve.router)

    @app.get("/health")
    async def health() -> Response:
        """The gateway is there."""
        return Response()

    @app.get("/ready", responses=kserve.DOWN)
    async def ready() -> Response:
        """The model's last probe, a real generation, passed."""
        return kserve.readiness(service)

    handle_errors(app)
    return Entrance(Door(app, service, keys), service)


def handle_errors(app: FastAPI) -> None:
    """Tell clients, in the words of the protocol that they speak, what is wrong; and count it."""
    app.add_exception_handler(GatewayError, _refused)
    app.add_exception_handler(HTTPException, _of_framework)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(ClientDisconnect, _gone)


class Entrance:
    """Lets in what is meant for us, and no web page but those that are named; see :mod:`.browsers`."""

    def __init__(self, door: ASGIApp, service: Service) -> None:
        settings = service.settings
        self.service, self.origins = service, settings.cors_origins
        self.names = browsers.Names(settings.host, settings.hosts, open_to_all=settings.keys_file is None)
        self.door = door
        if self.origins:
            self.door = CORSMiddleware(
                door,
                allow_origins=self.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["*"],
                allow_private_network=True,
                expose_headers=["Retry-After"],
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                self.names.check(scope)
                browsers.check_origin(scope, self.origins)
            except GatewayError as error:
                await _refuse(self.service, error, scope, receive, send)
                return
        await self.door(scope, receive, send)


class Door:
    """Lets requests in that have a key, hold JSON and are not too large."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys | None) -> None:
        self.app, self.service, self.keys = app, service, keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        try:
            scope["state"]["caller"] = self._caller(scope, headers)
            browsers.check_type(scope)
            limits = self.service.settings.limits
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or len(length) > MOST_DIGITS or int(length) > limits.max_body_bytes:
                raise too_large(limits.max_body_bytes)
        except GatewayError as error:
            await _refuse(self.service, error, scope, receive, send)
            return
        await self.app(scope, Body(receive, limits), send)

    def _caller(self, scope: Scope, headers: dict[bytes, bytes]) -> Caller:
        name = (scope.get("client") or ("local",))[0]
        if self.keys is not None and scope["path"] not in OPEN:
            name = authorised(self.keys, headers.get(b"authorization", b"").decode("latin-1"))
        return Caller(name, scope["state"]["cut"])


class Body:
    """Receives a request's body, and no more of it or longer than allowed."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits = receive, limits
        self._bytes, self._whole = 0, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._limits.body_s):
                message = await self._receive()
        except TimeoutError:
            raise GatewayError(408, "the request's body did not come in time", reason="invalid") from None
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._bytes > self._limits.max_body_bytes:
            raise too_large(self._limits.max_body_bytes)
        return message


async def _refuse(service: Service, error: GatewayError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request with an error before its body is read."""
    response = _told(service.metrics, scope["path"], error)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def _told(metrics: Metrics, path: str, error: GatewayError) -> Response:
    """An error as a response.  ASCII, since what a client wrote may hold half a surrogate pair."""
    metrics.refused(error)
    body = error.openai() if path.startswith("/v1") else error.triton()
    return Response(strict_json.dumps(body), error.status, error.headers(), media_type="application/json")


def _answered(request: Request, error: GatewayError) -> Response:
    return _told(request.app.state.service.metrics, request.url.path, error)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return _answered(request, error)


async def _of_framework(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    # FastAPI makes a 400 of whatever is raised while a body is read.
    if isinstance(error.__cause__, GatewayError):
        return _answered(request, error.__cause__)
    said = {404: f"there is nothing at {request.url.path}", 405: f"{request.method} is not for this path"}
    found = GatewayError(
        error.status_code,
        said.get(error.status_code, error.detail),
        reason="not_found" if error.status_code == 404 else "invalid",
    )
    response = _answered(request, found)
    response.headers.update(error.headers or {})
    return response


async def _not_valid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    if request.url.path.startswith("/v1"):
        return _answered(request, openai.explained(error))
    return _answered(request, invalid("; ".join(str(each["msg"]) for each in error.errors())))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)
