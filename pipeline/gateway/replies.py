"""Replies that end when their client has gone: an answer awaited, and a stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
CLIENT_GONE = 499  # nginx's number; nobody gets it, it is for logs


class EventStream(Response):
    """Sends parts as they come.  Begins with the first one: an error before it has its own status.

    Not starlette's ``StreamingResponse``, which begins at once, and leaves its generator to the garbage
    collector where the client goes while a part is being sent.
    """

    media_type = "text/event-stream"

    def __init__(self, found: AsyncGenerator[bytes, None]) -> None:
        self.parts = found
        self.status_code = 200
        self.background = None
        # What stands between must not keep parts back; X-Accel-Buffering is nginx's word for it.
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await while_there(receive, self._send(send))

    async def _send(self, send: Send) -> bool:
        begun = False
        async with aclosing(self.parts):
            async for part in self.parts:
                if not begun:
                    begun = True
                    start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                    await send(start)
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return True


async def while_there(receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """What ``work`` returns; None, and the work cancelled and at its end, where the client goes first."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
