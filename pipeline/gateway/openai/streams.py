"""The events of an answer on their way to the client: several choices in one stream, errors, and the client's end.

Whatever ends an answer early - the client goes, one of its choices fails, the gateway stops - closes the
generators of all its choices, which cancels their requests in the model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from pipeline import strict_json
from pipeline.gateway.asks import Event
from pipeline.gateway.errors import GatewayError, failed
from pipeline.gateway.openai.answers import DONE, Answer

Events = AsyncGenerator[tuple[int, Event], None]
WAITING = 4  # events of one choice that may wait for a slow reader
log = logging.getLogger(__name__)


async def merged(answers: list[AsyncGenerator[Event, None]]) -> Events:
    """Events of all answers as they come, each with the number of its answer.

    Raises what the first of them raises that fails; an answer that was cancelled from elsewhere has failed.
    """
    if len(answers) == 1:  # nearly always; without a task and a queue between
        async with aclosing(answers[0]) as events:
            async for event in events:
                yield 0, _unbroken(event)
        return
    queue: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(WAITING * len(answers))

    async def pump(index: int, answer: AsyncGenerator[Event, None]) -> None:
        end = None
        try:
            async with aclosing(answer) as events:
                async for event in events:
                    await queue.put((index, _unbroken(event)))
        except Exception as error:
            end = error
        await queue.put((index, end))

    pumps = [asyncio.create_task(pump(index, answer)) for index, answer in enumerate(answers)]
    try:
        running = len(pumps)
        while running:
            index, found = await queue.get()
            if isinstance(found, Event):
                yield index, found
            elif found is None:
                running -= 1
            else:
                raise found
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


def _unbroken(event: Event) -> Event:
    if event.finish_reason == "cancelled":
        raise GatewayError(
            500, "the answer was cancelled on the server", code="cancelled", outcome="cancelled"
        )
    return event


async def collected(events: Events, answer: Answer) -> bytes:
    """The whole answer, once all events have come."""
    async with aclosing(events):
        async for index, event in events:
            answer.choices[index].add(event)
    return answer.whole()


async def parts(events: Events, answer: Answer) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events, ``[DONE]`` at the end.

    An error before the first part is raised, so that it becomes an HTTP status; a later one is told in the stream.
    """
    begun = False
    try:
        async with aclosing(events):
            async for index, event in events:
                part = answer.part(index, event)
                if part:
                    begun = True
                    yield part
        if answer.include_usage:
            yield answer.usage_part()
    except GatewayError as error:
        if not begun:
            raise
        yield _told(error)
    except Exception:
        if not begun:
            raise
        log.exception("an answer broke off")
        yield _told(failed("the gateway failed in the middle of the answer"))
    yield DONE


def _told(error: GatewayError) -> bytes:
    return f"data: {strict_json.dumps(error.openai())}\n\n".encode()
