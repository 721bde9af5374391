"""One request from its admission to its end, whatever protocol it came by."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import AsyncGenerator, Iterator
from typing import Any, TypeVar

from pipeline.gateway.admission import Admission
from pipeline.gateway.asks import Ask, Caller, Event
from pipeline.gateway.contract import checked
from pipeline.gateway.errors import GatewayError, invalid
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.passage import Passage
from pipeline.gateway.settings import Settings
from pipeline.gateway.upstream import Upstream
from pipeline.gateway.versions import Model, Version, Versions

T = TypeVar("T")
LOG = logging.getLogger("lifecycle.gateway")
LONGEST_ID = 256  # characters, as in the contract


class Service:
    """Answers requests by asking the current version.  Lives in one event loop."""

    def __init__(self, settings: Settings, versions: Versions, upstream: Upstream, metrics: Metrics) -> None:
        self.settings = settings
        self.versions = versions
        self.upstream = upstream
        self.metrics = metrics
        self.admission = Admission(settings.limits)
        self._named: dict[
            tuple[str, str], Version
        ] = {}  # requests under way that have a request_id, by caller

    async def answer(self, ask: Ask, caller: Caller) -> AsyncGenerator[Event, None]:
        """The events of an answer: the first when the model has taken the request, the last with its finish reason.

        Closing the generator cancels the request in the model.  Raises :class:`GatewayError`, before the first event
        or between two.
        """
        passage = Passage(self.metrics, ask, caller, ask.model in self.versions.models())
        try:
            async with self.admission.enter(caller, ask.weight):
                inputs = self._checked(ask)
                with (
                    self._version(ask, caller, inputs) as (version, model),
                    model.leashed(caller.cut, self.settings.limits.request_s),
                ):
                    passage.taken()
                    stream = await self.upstream.ask(version, model, inputs)
                    try:
                        while not stream.finished:
                            for event in await stream.more():
                                passage.count(event)
                                yield event
                        await stream.finish()
                    finally:
                        stream.close()
        except GatewayError as error:
            passage.fail(error)
            raise
        except Exception as error:
            LOG.exception("a request failed inside the gateway")
            inside = GatewayError(500, f"the gateway failed: {type(error).__name__}", outcome="failed")
            passage.fail(inside)
            raise inside from error
        finally:
            passage.end(self.settings.log_requests)

    async def together(
        self, weight: int, caller: Caller, events: AsyncGenerator[T, None]
    ) -> AsyncGenerator[T, None]:
        """Events of ``weight`` requests that a client sent as one: all of them are admitted, or none."""
        async with contextlib.aclosing(events), self.admission.enter(caller, weight):
            async for event in events:
                yield event

    def _checked(self, ask: Ask) -> dict[str, Any]:
        inputs = checked({name: value for name, value in ask.inputs.items() if value is not None})
        most, wanted = self.settings.limits.max_tokens, inputs.get("max_tokens")
        if most is not None and wanted is not None and wanted > most:
            raise invalid(f"max_tokens is {wanted}; this server gives {most} at most", "max_tokens")
        length = len(inputs.get("request_id", ""))
        if length > LONGEST_ID:
            raise invalid(f"request_id has {length} characters; it may have {LONGEST_ID}", "request_id")
        return inputs

    @contextlib.contextmanager
    def _version(self, ask: Ask, caller: Caller, inputs: dict[str, Any]) -> Iterator[tuple[Version, Model]]:
        """The version that answers and its model; ``inputs`` get what the route says.

        A ``request_id`` is its caller's own: nobody ends the requests of another.  A cancellation goes to the version that
        what it ends is running on.
        """
        name = inputs.get("request_id", "")
        key = (caller.name, name)
        running = self._named.get(key) if name else None
        ends = bool(inputs.get("cancel")) and bool(name)
        if ends and running is None:
            raise invalid(f"no request with the request_id {name!r} is running", "request_id")
        if running is not None and not ends:
            raise invalid(f"a request with the request_id {name!r} is running", "request_id")
        version, model, route = self.versions.take(ask.model, running)
        try:
            if route["lora"]:
                inputs["lora"] = route["lora"]
            if name:
                inputs["request_id"] = hashlib.sha256(repr(key).encode()).hexdigest()
                if not ends:
                    self._named[key] = version
            yield version, model
        finally:
            if name and not ends:
                del self._named[key]
            self.versions.release(version, model)


async def whole(events: AsyncGenerator[Event, None]) -> Event:
    """An answer in one event.  Raises :class:`GatewayError`."""
    texts: list[str] = []
    logprobs: list[tuple[str, float]] = []
    prompt = 0
    async with contextlib.aclosing(events):
        async for event in events:
            texts.append(event.text)
            logprobs += event.logprobs
            prompt = prompt or event.prompt_tokens
            last = event
    return Event("".join(texts), last.finish_reason, prompt, last.completion_tokens, logprobs)


async def once(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """The same answer as its only event."""
    yield await whole(events)
