"""The metrics port: the gateway's own metrics, and those of the current version's Triton."""

from __future__ import annotations

from prometheus_client import make_asgi_app
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from pipeline.gateway.errors import GatewayError
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.upstream import Upstream
from pipeline.gateway.versions import Versions


def build(metrics: Metrics, versions: Versions, upstream: Upstream) -> Starlette:
    """``/metrics`` and ``/metrics/triton``, as Prometheus reads them."""

    async def of_triton(request: Request) -> PlainTextResponse:
        if versions.current is None:
            return PlainTextResponse("", 503)
        try:
            return PlainTextResponse(await upstream.metrics(versions.current))
        except GatewayError as error:
            return PlainTextResponse(error.message, error.status)

    return Starlette(
        routes=[Route("/metrics/triton", of_triton), Mount("/metrics", make_asgi_app(metrics.registry))]
    )
