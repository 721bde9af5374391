"""The metrics port: the gateway's own metrics, and those of the current version's Triton."""

from __future__ import annotations

from prometheus_client import make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from pipeline.gateway.browsers import Names, check_origin
from pipeline.gateway.errors import GatewayError
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.settings import Settings
from pipeline.gateway.upstream import Upstream
from pipeline.gateway.versions import Versions


def build(settings: Settings, metrics: Metrics, versions: Versions, upstream: Upstream) -> ASGIApp:
    """``/metrics`` and ``/metrics/triton``, as Prometheus reads them; web pages do not."""

    async def of_triton(request: Request) -> PlainTextResponse:
        if versions.current is None:
            return PlainTextResponse("", 503)
        try:
            return PlainTextResponse(await upstream.metrics(versions.current))
        except GatewayError as error:
            return PlainTextResponse(error.message, error.status)

    app = Starlette(
        routes=[Route("/metrics/triton", of_triton), Mount("/metrics", make_asgi_app(metrics.registry))]
    )
    names = Names(settings.metrics_host, settings.hosts, open_to_all=False)

    async def entrance(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            try:
                names.check(scope)
                check_origin(scope, ())
            except GatewayError as error:
                metrics.refused(error)
                await PlainTextResponse(error.message, error.status)(scope, receive, send)
                return
        await app(scope, receive, send)

    return entrance
