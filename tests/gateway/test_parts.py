"""Parts of the gateway alone, where a real Triton cannot be made to misbehave so."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from aiohttp import web
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from uvicorn.server import ServerState

from pipeline.gateway import __main__ as program
from pipeline.gateway.connections import Connection
from pipeline.gateway.errors import GatewayError, failed
from pipeline.gateway.health import Health
from pipeline.gateway.kserve_grpc import Servicer
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.settings import Limits, Settings, VersionSettings
from pipeline.gateway.upstream import Upstream
from pipeline.gateway.versions import Model, Version, Versions

MODELS = {name: {"model": name, "lora": ""} for name in ("assistant", "polite")}
PART = (
    b'data: {"text_output": "a", "finish_reason": "%b", "prompt_tokens": 1, "completion_tokens": 1, '
    b'"logprobs_output": ""}\n\n'
)
Answered = Callable[[web.StreamResponse], Awaitable[None]]


async def told(answered: Answered) -> tuple[list[str], str]:
    """Texts, and the error, of an answer that a server gives so."""

    async def handle(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await answered(response)
        return response

    server = web.Application()
    server.router.add_post("/{any:.*}", handle)
    runner = web.AppRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    upstream = Upstream(Limits())
    texts, error = [], ""
    try:
        version = Version(VersionSettings("x", f"127.0.0.1:{port}", "", MODELS))
        stream = await upstream.ask(version, version.models["assistant"], {})
        try:
            while not stream.finished:
                texts += [event.text for event in await stream.more()]
            await stream.finish()
        except GatewayError as found:
            error = found.message
        finally:
            stream.close()
    finally:
        await upstream.close()
        await runner.cleanup()
    return texts, error


def test_what_comes_with_an_error_is_not_lost() -> None:
    async def answered(response: web.StreamResponse) -> None:
        await response.write(PART % b"" + b'data: {"error": "it broke"}\n\n')

    assert asyncio.run(told(answered)) == (["a"], "it broke")


@pytest.mark.parametrize("data", [b"{}", b"no json", b"[1]", b"7", b'{"finish_reason": ""}'])
def test_what_is_no_answer_is_an_error(data: bytes) -> None:
    async def answered(response: web.StreamResponse) -> None:
        await response.write(b"data: %b\n\n" % data)

    assert asyncio.run(told(answered)) == ([], "the model's server sent something that is no answer")


def test_an_answer_that_is_whole_does_not_wait_for_the_connections_end() -> None:
    async def answered(response: web.StreamResponse) -> None:
        await response.write(PART % b"stop")
        await asyncio.sleep(3)

    began = time.monotonic()
    assert asyncio.run(told(answered)) == (["a"], "")
    assert time.monotonic() - began < 2.5


def test_a_request_that_was_woken_can_be_given_up() -> None:
    async def twice() -> None:
        version = Version(VersionSettings("x", "127.0.0.1:1", "", MODELS))
        async with asyncio.timeout(60) as limit:
            version.models["assistant"].limits.add(limit)
            limit.reschedule(asyncio.get_running_loop().time())
            # In the turn of the loop in which the limit falls due, and after it.
            asyncio.get_running_loop().call_soon(version.give_up, "again")
            await asyncio.sleep(10)

    def noted(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        wrong.append(context)

    wrong: list[dict[str, Any]] = []
    with asyncio.Runner() as runner:
        runner.get_loop().set_exception_handler(noted)
        with pytest.raises(TimeoutError):
            runner.run(twice())
    assert not wrong


def test_a_fault_of_a_stream_ends_it() -> None:
    class Context:
        def peer(self) -> str:
            return "ipv4:127.0.0.1:1"

        def invocation_metadata(self) -> tuple[()]:
            return ()

    async def broken() -> Any:
        raise KeyError("a mistake")
        yield

    async def ended() -> None:
        servicer = Servicer(None, None)  # type: ignore[arg-type]
        async with asyncio.timeout(5):
            async for _ in servicer.ModelStreamInfer(broken(), Context()):
                pass

    with pytest.raises(ExceptionGroup, match="TaskGroup"):
        asyncio.run(ended())


@pytest.mark.parametrize("bounds", [{"most": 2, "share": 9}, {"most": 9, "share": 2}])
def test_connections_are_bounded_and_do_not_wait_for_ever(bounds: dict[str, int]) -> None:
    peers: Counter[str] = Counter()

    async def spoken() -> None:
        config = uvicorn.Config(
            Starlette(),
            http=functools.partial(Connection, **bounds, peers=peers, head_s=0.4),
            lifespan="off",
            log_config=None,
        )  # type: ignore[arg-type]
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: config.http_protocol_class(config, state, {}), "127.0.0.1")  # type: ignore[call-arg]
        port = server.sockets[0].getsockname()[1]
        begun = loop.time()
        ends = [(await asyncio.open_connection("127.0.0.1", port)) for _ in range(3)]
        ends[0][1].write(b"GET / HTTP/1.1\r\nX: ")
        with contextlib.suppress(ConnectionError):
            assert not await ends[0][0].read(1)  # one too many: the oldest that asks nothing
        assert loop.time() - begun < 0.3
        for reader, _ in ends[1:]:
            with contextlib.suppress(ConnectionError):
                assert not await reader.read(1)
        assert 0.3 < loop.time() - begun < 3
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(2):  # kept, and used again after a while
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 404")
            await reader.readuntil(b"Not Found")
            await asyncio.sleep(0.6)
        for _, each in [*ends, (reader, writer)]:
            each.close()
        server.close()
        await asyncio.sleep(0.1)

    asyncio.run(asyncio.wait_for(spoken(), 10))
    assert not peers  # whoever has gone is not counted


def test_who_waits_for_an_answer_is_not_idle_where_there_are_too_many() -> None:
    async def spoken() -> None:
        answering = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await answering.wait()
            await PlainTextResponse("an answer")(scope, receive, send)

        config = uvicorn.Config(
            app,
            http=functools.partial(Connection, most=9, share=2, peers=Counter()),  # type: ignore[arg-type]
            lifespan="off",
            log_config=None,
        )
        config.load()
        loop, state = asyncio.get_running_loop(), ServerState()
        server = await loop.create_server(lambda: config.http_protocol_class(config, state, {}), "127.0.0.1")  # type: ignore[call-arg]
        port = server.sockets[0].getsockname()[1]
        asking, idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        asking[1].write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await asyncio.sleep(0.1)
        third = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.suppress(ConnectionError):
            assert not await idle[0].read(1)
        answering.set()
        assert (await asking[0].readline()).startswith(b"HTTP/1.1 200")
        for _, each in (asking, idle, third):
            each.close()
        server.close()

    asyncio.run(asyncio.wait_for(spoken(), 10))


def test_a_dead_model_leaves_the_others_of_its_version_alone() -> None:
    class Asked(Upstream):
        """Probes of ``polite`` fail while ``dead``."""

        dead = True

        async def probe(self, version: Version, model: Model, timeout_s: float) -> None:
            if self.dead and model.name == "polite":
                raise failed("the model's process has died")

    async def looks() -> None:
        upstream = Asked(Limits())
        versions = Versions(VersionSettings("x", "127.0.0.1:1", "", MODELS))
        health = Health(Settings(probe_every_s=0.001), versions, upstream, Metrics())
        version = versions.current
        assert version is not None
        assert (
            versions.ready()
            == "the model does not answer: assistant: it has not answered yet; polite: it has not answered yet"
        )
        async with asyncio.timeout(60) as running, asyncio.timeout(60) as hanging:
            version.models["assistant"].limits.add(running)
            version.models["polite"].limits.add(hanging)
            await health.look(version)
            assert hanging.when() < asyncio.get_running_loop().time() < running.when()  # type: ignore[operator]
            hanging.reschedule(None)
        assert (versions.ready(), versions.ready("assistant")) == ("", "")
        assert "died" in versions.ready("polite")
        versions.release(*versions.take("assistant")[:2])
        with pytest.raises(GatewayError, match="died"):
            versions.take("polite")
        assert (version.state()["answers"], version.under_way) == (True, 0)
        upstream.dead = False
        await health.look(version)
        assert (versions.ready("polite"), version.fault) == ("", "")
        await upstream.close()

    asyncio.run(looks())


def test_a_full_log_is_begun_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(program, "LOG_BYTES", 2000)
    program.log_to(str(tmp_path / "gateway.log"))
    for number in range(200):
        logging.getLogger("lifecycle.gateway").error("request %d", number)
    files = sorted(tmp_path.iterdir())
    assert [each.name for each in files] == [
        "gateway.log",
        *(f"gateway.log.{n}" for n in range(1, program.LOGS_KEPT + 1)),
    ]
    assert all(each.stat().st_size <= 2000 for each in files)
    assert files[0].read_text().endswith("request 199\n")
    root.handlers[0].close()
