"""Run the gateway: HTTP, gRPC, metrics and the control socket in one event loop.

SIGTERM and SIGINT: not ready any more, nothing new is taken, what is under way is finished (``limits.drain_s`` at most).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import math
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import ASGIApp

from pipeline import terminal
from pipeline.gateway import app, connections, control, exposition, kserve_grpc
from pipeline.gateway.addresses import bound
from pipeline.gateway.health import Health
from pipeline.gateway.keys import Keys
from pipeline.gateway.metrics import Metrics
from pipeline.gateway.service import Service
from pipeline.gateway.settings import Settings, SettingsError, check_pair, load
from pipeline.gateway.shares import Shares
from pipeline.gateway.upstream import Upstream
from pipeline.gateway.versions import GRACE_S, Versions

LOG = logging.getLogger("lifecycle.gateway")
CLOSING_S = 1 + math.ceil(GRACE_S)  # for the listeners, once everything under way is finished or given up
NOTICED_S = 0.05  # how often a drain is looked at
USAGE = 2
LOG_BYTES, LOGS_KEPT = 50_000_000, 3  # a busy day's requests, and what came before them
BACKLOG = 1024  # connections that wait to be taken


class Server(uvicorn.Server):
    """One listener; signals are the program's business, which has several."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listener(settings: Settings, application: ASGIApp, **more: object) -> Server:
    """A server of this application; ``more`` are settings of uvicorn's."""
    return Server(
        uvicorn.Config(
            application,
            loop="none",
            http=connections.bounded(settings.limits.max_requests),
            proxy_headers=False,  # whoever asks could write them
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=CLOSING_S,
            **more,  # type: ignore[arg-type]
        )
    )


def cleared(path: Path) -> None:
    """Remove the socket of a gateway that is gone.  Raises ``OSError`` for a file that is something else."""
    if path.exists() and not path.is_socket():
        raise OSError(f"{path} is there and is no socket")
    path.unlink(missing_ok=True)


async def owned(path: Path) -> None:
    """Wait for the control socket, and keep it from others (uvicorn lets everybody write to it)."""
    while not path.exists():
        await asyncio.sleep(NOTICED_S)
    await asyncio.sleep(NOTICED_S)  # after uvicorn's own chmod
    path.chmod(0o600)


async def serve(settings: Settings) -> int:
    """Listen until a signal says otherwise: 0.  1 where a part of the gateway ended by itself."""
    keys = Keys(Path(settings.keys_file)) if settings.keys_file else None
    versions, metrics = Versions(settings.version), Metrics()
    upstream = Upstream(settings.limits)
    health = Health(settings, versions, upstream, metrics)
    service = Service(settings, versions, upstream, metrics)
    tls = {"ssl_certfile": settings.tls_certificate, "ssl_keyfile": settings.tls_key}
    sockets = [
        [bound(settings.host, settings.http_port, BACKLOG)],
        [bound(settings.metrics_host, settings.metrics_port, BACKLOG)],
        None,
    ]
    servers = [
        listener(settings, app.build(service, keys), **tls),
        listener(settings, exposition.build(settings, metrics, versions, upstream)),
    ]
    if settings.control is not None:
        cleared(Path(settings.control))
        servers.append(listener(settings, control.build(versions, health), uds=settings.control))
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    rpc = await kserve_grpc.start(settings, service, keys)
    most = connections.room(settings.limits.max_requests)
    share = connections.share(most, settings.limits.max_requests)
    shares = Shares(settings.grpc_port, share, most - most // connections.SPARE)
    aside = [asyncio.create_task(shares.watch())]
    if settings.keeper:
        from pipeline.gateway.keeping import Keeping  # rests on the deployment's record, which no image has

        aside.append(asyncio.create_task(Keeping(*settings.keeper).watch()))
    tasks = [
        asyncio.create_task(server.serve(sockets=at)) for server, at in zip(servers, sockets, strict=False)
    ]
    watching = asyncio.create_task(health.watch())
    if settings.control is not None:
        await owned(Path(settings.control))
    try:
        ended = asyncio.create_task(stopping.wait())
        done, _ = await asyncio.wait([ended, watching, *aside, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for each in done - {ended}:
            LOG.error("a part of the gateway ended by itself", exc_info=each.exception())
        for each in aside:
            each.cancel()
        versions.closing = True
        deadline = asyncio.get_running_loop().time() + settings.limits.drain_s
        while versions.under_way() and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(NOTICED_S)
        versions.give_up("the gateway is shutting down")
        return 0 if ended in done else 1
    finally:
        for each in (watching, *aside):
            each.cancel()
        await rpc.stop(grace=1.0)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*tasks, watching, *aside, return_exceptions=True)
        await upstream.close()


class Lines(logging.Formatter):
    """What clients or the model's server said never commands the terminal that shows a log."""

    def format(self, record: logging.LogRecord) -> str:
        return terminal.visible(super().format(record))


def log_to(file: str | None) -> None:
    """Log into a file of bounded size, with some before it, or to standard output."""
    handler: logging.Handler = (
        logging.handlers.RotatingFileHandler(
            file, maxBytes=LOG_BYTES, backupCount=LOGS_KEPT, encoding="utf-8"
        )
        if file
        else logging.StreamHandler(sys.stdout)
    )
    handler.setFormatter(Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def main(words: list[str]) -> int:
    """Exit status: 0 after a signal, 1 where it could not listen or failed, 2 for wrong settings."""
    if len(words) != 1:
        print(f"usage: python -m pipeline.gateway FILE.json\n\n{__doc__}", file=sys.stderr)
        return USAGE
    try:
        settings = load(Path(words[0]))
        log_to(settings.log)
        if settings.tls_certificate and settings.tls_key:
            check_pair(settings.tls_certificate, settings.tls_key)
        connections.take_files()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(serve(settings))
    except SettingsError as error:
        print(terminal.visible(f"error: {error}"), file=sys.stderr)
        return USAGE
    except (OSError, RuntimeError) as error:
        print(terminal.visible(f"error: the gateway cannot listen: {error}"), file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
