"""The control socket: how a deployment on this machine puts another version in the place of one.

A UNIX socket that its owner alone may open; never on the network.  JSON in and out::

    GET  /state            {"ready": "", "current": {...}, "leaving": [{...}], "under_way": 3}
    POST /switch {...}     a version's settings: it is asked for a token, and from then on asked by clients
    POST /give-up {"address": ..., "why": ...}   end what is still under way on a version that is leaving
"""

from __future__ import annotations

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from pipeline.gateway.errors import GatewayError
from pipeline.gateway.health import Health
from pipeline.gateway.settings import version_of
from pipeline.gateway.versions import Version, Versions


def build(versions: Versions, health: Health) -> Starlette:
    """The control application."""

    async def state(request: Request) -> JSONResponse:
        current = versions.current
        return JSONResponse(
            {
                "ready": versions.ready(),
                "current": current.state() if current else None,
                "leaving": [each.state() for each in versions.leaving],
                "under_way": versions.under_way(),
            }
        )

    async def switch(request: Request) -> JSONResponse:
        try:
            version = Version(version_of(json.loads(await request.body()), "the version"))
            await health.admit(version)
        except (ValueError, RecursionError, GatewayError) as error:
            return JSONResponse({"error": str(error)}, 400)
        before = versions.current
        health.switch(version)
        return JSONResponse({"previous": before.state() if before else None})

    async def give_up(request: Request) -> JSONResponse:
        try:
            wanted = json.loads(await request.body())
            address, why = str(wanted["address"]), str(wanted["why"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return JSONResponse({"error": f"{type(error).__name__}: {error}"}, 400)
        for version in versions.leaving:
            if version.settings.address == address:
                version.give_up(why)
        return JSONResponse({})

    return Starlette(
        routes=[
            Route("/state", state),
            Route("/switch", switch, methods=["POST"]),
            Route("/give-up", give_up, methods=["POST"]),
        ]
    )
