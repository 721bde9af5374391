"""Asking Triton: one streamed request over HTTP, its events as they come.

Every request is streamed, whoever asks and however: Triton notices that a client has gone only once it has
sent something, and the contract's models send an empty part as soon as they have taken a request.
What is sent is made here, in one piece with its length; nothing of the client's own bytes or headers reaches Triton's parser.
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from __future__ import annotations

import asyncio
import json
from typing import Any
from urllib.parse import quote

import aiohttp

from pipeline import strict_json
from pipeline.gateway.asks import Event
from pipeline.gateway.errors import GatewayError, failed, invalid, timed_out, too_large, unavailable
from pipeline.gateway.settings import LARGEST_BODY, Limits
from pipeline.gateway.versions import Model, Version

LONGEST_ERROR = 65_536
METRICS_S = 5.0
END_S = 1.0  # for the end of a message whose last event has come
HEADERS = {"Content-Type": "application/json"}
PROBE = {"text_input": "ready?", "max_tokens": 1, "temperature": 0.0, "ignore_end": True}


class Upstream:
    """Connections to the Triton servers of this machine (or pod)."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=False),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5.0),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def ask(self, version: Version, model: Model, inputs: dict[str, Any]) -> Stream:
        """Send a request; returns once the model has taken it.  Raises :class:`GatewayError`."""
        stream = Stream(self.limits, model)
        body = strict_json.dumps({**inputs, "stream": True}, ensure_ascii=False).encode("utf-8")
        if len(body) > LARGEST_BODY:
            raise too_large(LARGEST_BODY)
        url = f"http://{version.settings.address}/v2/models/{quote(model.name, safe='')}/generate_stream"
        await stream.open(self._session, url, body)
        return stream

    async def metrics(self, version: Version) -> str:
        """Triton's own metrics, as it tells them.  Raises :class:`GatewayError`."""
        try:
            async with (
                asyncio.timeout(METRICS_S),
                self._session.get(f"http://{version.settings.metrics}/metrics") as response,
            ):
                return await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unavailable(f"Triton's metrics cannot be read: {error}") from None

    async def probe(self, version: Version, model: Model, timeout_s: float) -> None:
        """A real generation of one token.  Raises :class:`GatewayError` with what is wrong."""
        try:
            async with asyncio.timeout(timeout_s):
                stream = await self.ask(version, model, PROBE)
                try:
                    while not stream.finished:
                        await stream.more()
                    await stream.finish()
                finally:
                    stream.close()
        except TimeoutError:
            raise timed_out(f"no token within {timeout_s:g} s") from None
        if not stream.tokens:
            raise failed("the answer held no token")

    async def close(self) -> None:
        await self._session.close()


class Stream:
    """One answer as it comes: :meth:`more` until ``finished``, then :meth:`close`, whatever happens."""

    def __init__(self, limits: Limits, model: Model) -> None:
        self.limits, self.model = limits, model
        self.finished = False
        self.tokens = 0
        self._endings = model.endings
        self._rest = b""
        self._broken: GatewayError | None = None  # said after the events that came with it
        self._response: aiohttp.ClientResponse | None = None
        self._ends = asyncio.get_running_loop().time() + limits.request_s

    async def open(self, session: aiohttp.ClientSession, url: str, body: bytes) -> None:
        async def post() -> aiohttp.ClientResponse:
            return await session.post(url, data=body, headers=HEADERS)

        self._response = response = await self._waited(post(), self.limits.first_token_s)
        if response.status != 200:
            text = await self._waited(response.content.read(LONGEST_ERROR), self.limits.between_tokens_s)
            self.close()
            raise _refusal(response.status, text)

    async def more(self) -> list[Event]:
        """The next events, at least one.  Raises :class:`GatewayError` where the answer breaks off."""
        assert self._response is not None
        if self._broken is not None:
            raise self._broken
        while True:
            wait = self.limits.between_tokens_s if self.tokens else self.limits.first_token_s
            data = await self._waited(self._response.content.readany(), wait)
            if not data:
                raise failed("the model's server ended in the middle of its answer", status=502)
            *lines, self._rest = (self._rest + data).split(b"\n")
            events = self._events(lines)
            if self.tokens:
                self.model.lived = asyncio.get_running_loop().time()
            if events:
                return events

    async def finish(self) -> None:
        """After the last event: read the end of the connection's message, so that the next request can use it."""
        if self._response is not None:
            try:
                while await self._waited(self._response.content.readany(), END_S):
                    pass
            except GatewayError:
                return  # the answer is whole all the same; :meth:`close` cuts the connection
            self._response.release()
            self._response = None

    def close(self) -> None:
        """Be done with it.  A connection with an unfinished answer is cut, which cancels the request in the model."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _events(self, lines: list[bytes]) -> list[Event]:
        events: list[Event] = []
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            try:
                events.append(self._event(line[5:]))
            except (KeyError, ValueError, TypeError):
                self._broken = failed("the model's server sent something that is no answer", status=502)
            except GatewayError as error:
                self._broken = error
            if self._broken is not None:
                if not events:
                    raise self._broken
                break
        return events

    def _event(self, data: bytes) -> Event:
        found = json.loads(data)
        if "error" in found:
            raise _of_model(500, str(found["error"]))
        self.finished = bool(found["finish_reason"])
        self.tokens = found["completion_tokens"]
        logprobs = found["logprobs_output"]
        return Event(
            text=found["text_output"],
            finish_reason=found["finish_reason"],
            prompt_tokens=found["prompt_tokens"],
            completion_tokens=self.tokens,
            logprobs=[tuple(each) for each in json.loads(logprobs)] if logprobs else [],
        )

    def _given_up(self) -> bool:
        return self.model.endings != self._endings

    async def _waited(self, coming: Any, seconds: float) -> Any:
        """Wait for Triton, no longer than allowed, and no longer than the model is there."""
        now = asyncio.get_running_loop().time()
        limit = asyncio.timeout_at(now if self._given_up() else min(now + seconds, self._ends))
        self.model.limits.add(limit)
        try:
            async with limit:
                return await coming
        except TimeoutError:
            if self._given_up():
                raise failed(self.model.ended, status=502) from None
            if asyncio.get_running_loop().time() >= self._ends:
                raise timed_out(f"the answer was not whole within {self.limits.request_s:g} s") from None
            what = "next" if self.tokens else "first"
            raise timed_out(f"the {what} token did not come within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise failed(f"the model's server broke off: {error}", status=502) from None
        finally:
            self.model.limits.discard(limit)


def _refusal(status: int, body: bytes) -> GatewayError:
    try:
        # generate_stream sends even a refusal as an event.
        said = str(json.loads(body.strip().removeprefix(b"data:"))["error"])
    except (ValueError, KeyError, TypeError):
        said = f"the model's server answered with status {status}"
    return _of_model(status, said)


def _of_model(status: int, said: str) -> GatewayError:
    """What the model or its server said, as a client is told."""
    if "is not healthy" in said:  # Triton's words for a model process that has died, with status 400
        return unavailable("the model's process has died")
    if status == 400:
        # The contract's words for a prompt (and its answer) that the model has no room for.
        full = "the model reads at most" in said or "the model's context of" in said
        return invalid(said, code="context_length_exceeded" if full else None)
    if status == 503:
        return unavailable(said)
    if status == 404:  # a route that the version's settings promise, and Triton does not know
        return failed(said, status=502)
    return failed(said)
