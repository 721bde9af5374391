"""What a recipe serves: a gateway, the Triton of the current version behind it, and the keeper of both.

``make deploy`` leaves the record of it beside the recipe's deployments; ``chat``, ``status``, ``stop``,
``rollback``, ``trace`` and the next deployment find everything through it::

    server.json                 this record
    server/lock                 held by who changes what runs: a deployment, a rollback, the keeper
    server/gateway.json, .log   the gateway's settings and log
    server/keeper.log           what the keeper saw and did
    server/versions/NAME/       one Triton: links to its export, its log
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import schema, strict_json
from pipeline.gateway.addresses import authority
from pipeline.gateway.settings import Limits, Settings
from pipeline.serving import control, processes, server
from pipeline.serving.client import Endpoint
from pipeline.serving.processes import Mark
from pipeline.serving.server import ServerRecord, reachable

GATEWAY, KEEPER = "pipeline.gateway", "pipeline.stages.deploy.keeper"
TERM_WAIT_S = 10.0
KILL_WAIT_S = 5.0


@dataclass(frozen=True)
class Gateway:
    """A gateway that was started; ``control`` is its control socket, ``settings`` the file that it read."""

    process: Mark
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    tls_certificate: str | None
    needs_key: bool
    control: str
    settings: str
    log: str

    @property
    def address(self) -> str:
        """Host and port of the HTTP endpoint."""
        return authority(reachable(self.host), self.http_port)

    @property
    def url(self) -> str:
        return Endpoint(self.address, "", self.tls_certificate).url


@dataclass(frozen=True)
class Earlier:
    """An export that was served before: where ``rollback`` goes."""

    identity: str
    export: str


@dataclass(frozen=True)
class Service:
    """Everything that runs for one recipe.

    ``version`` is the current Triton, ``export`` the folder that it serves, ``models`` the names for clients (as
    in the gateway's settings), ``previous`` the exports before, latest first; ``restarts`` counts what the keeper did;
    ``threads`` and ``start_timeout_s`` are for starting Triton again.
    """

    gateway: Gateway
    version: ServerRecord
    export: str
    models: dict[str, dict[str, str]]
    previous: list[Earlier]
    keeper: Mark | None = None
    restarts: int = 0
    threads: int = 1
    start_timeout_s: int = 120

    @property
    def endpoint(self) -> Endpoint:
        """The model itself, behind the gateway."""
        return Endpoint(self.gateway.address, self.version.model_name, self.gateway.tls_certificate)

    @property
    def identity(self) -> str:
        """Of the export that is served."""
        return self.version.export_identity


def folder_of(path: Path) -> Path:
    """The folder beside a record, where what runs keeps its files."""
    return path.with_suffix("")


def read(path: Path) -> Service | None:
    """The record at ``path``; None where there is none or it is not one (a torn or old file)."""
    try:
        plain = strict_json.loads(path.read_text(encoding="utf-8"))
        gateway = plain["gateway"]
        return Service(
            gateway=Gateway(**{**gateway, "process": Mark(**gateway["process"])}),
            version=ServerRecord(**plain["version"]),
            export=str(plain["export"]),
            models=dict(plain["models"]),
            previous=[Earlier(**each) for each in plain["previous"]],
            keeper=Mark(**plain["keeper"]) if plain["keeper"] else None,
            restarts=int(plain["restarts"]),
            threads=int(plain["threads"]),
            start_timeout_s=int(plain["start_timeout_s"]),
        )
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write(path: Path, service: Service) -> None:
    """Replace the record at ``path``; a reader sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(
        strict_json.dumps(dataclasses.asdict(service), indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    os.replace(part, path)


def settings_of(deploy: schema.Deploy) -> Settings:
    """The gateway's settings, as a recipe has them; without a version."""

    def whole(path: str | None) -> str | None:
        return None if path is None else str(Path(path).resolve())

    return Settings(
        host=deploy.host,
        http_port=deploy.http_port,
        grpc_port=deploy.grpc_port,
        metrics_port=deploy.metrics_port,
        insecure=deploy.insecure,
        hosts=deploy.hosts,
        cors_origins=deploy.cors_origins,
        probe_every_s=deploy.probe_every_s,
        probe_timeout_s=deploy.probe_timeout_s,
        limits=Limits(**dataclasses.asdict(deploy.limits)),
        keys_file=whole(deploy.keys_file),
        tls_certificate=whole(deploy.tls_certificate),
        tls_key=whole(deploy.tls_key),
    )


def changed(gateway: Gateway, deploy: schema.Deploy) -> list[str]:
    """The settings that a running gateway has otherwise than the recipe, by name."""
    try:
        found = strict_json.loads(Path(gateway.settings).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [gateway.settings]
    wanted = dataclasses.asdict(settings_of(deploy))
    return sorted(
        f"deploy.{name}"
        for name in {*found, *wanted} - {"control", "keeper", "log", "version"}
        if found.get(name) != wanted.get(name)
    )


@contextlib.contextmanager
def changing(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the right to change what runs; yields False where it is taken and we do not ``wait``."""
    folder_of(path).mkdir(parents=True, exist_ok=True)
    with open(folder_of(path) / "lock", "w", encoding="ascii") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def gateway_runs(gateway: Gateway) -> bool:
    """Whether the very gateway of the record is alive."""
    return _module_runs(gateway.process, GATEWAY)


def keeper_runs(service: Service) -> bool:
    """Whether the keeper of the record is alive."""
    return service.keeper is not None and _module_runs(service.keeper, KEEPER)


def fault(service: Service) -> str:
    """Why clients get no answers, in words; empty where they do.

    Health is a real generation: the gateway asks its model for a token all the time.
    """
    if not gateway_runs(service.gateway):
        return f"the gateway (process {service.gateway.process.pid}) is gone"
    if not server.is_running(service.version):
        return f"the server (process {service.version.pid}) is gone"
    try:
        state = control.state(service.gateway.control)
    except control.ControlError as error:
        return str(error)
    if asks(state) != service.version.address:
        return "the gateway asks another server than the one that was deployed"
    return str(state["ready"])


def asks(state: dict[str, Any]) -> str | None:
    """The address of the server that a gateway asks, by its own word."""
    return str(state["current"]["address"]) if state["current"] else None


def status_text(service: Service | None) -> str:
    """A line or two about the service for a person."""
    if service is None:
        return "no server"
    found = fault(service)
    if found:
        text = f"{service.gateway.url} does not answer: {found} (log: {service.version.log})"
    else:
        text = f"{', '.join(sorted(service.models))} answers at {service.gateway.url}"
    if service.restarts:
        text += f"; the keeper has started the model anew {service.restarts} times"
    if not keeper_runs(service):
        text += (
            "; its keeper is gone: the gateway starts another"
            if gateway_runs(service.gateway)
            else "; its keeper is gone: nobody would start it anew"
        )
    return text


def stop(service: Service) -> list[str]:
    """Stop exactly this service; returns what happened, a line each.

    The keeper first, which would start the others anew; then the gateway, which lets answers
    under way come to their end; then Triton.
    """
    said = []
    if service.keeper is not None:
        _end(service.keeper, KEEPER)
    how = stop_gateway(service.gateway)
    pid = service.gateway.process.pid
    said.append(
        f"the gateway at {service.gateway.url} (process {pid}) was already gone"
        if how is None
        else f"stopped the gateway at {service.gateway.url} (process {pid}{how})"
    )
    said.append(server.stop(service.version))
    return said


def stop_keeper(path: Path) -> None:
    """End the keeper of a record; what it was starting is a stray then."""
    record = read(path)
    if record is not None and record.keeper is not None:
        _end(record.keeper, KEEPER)


def stop_gateway(gateway: Gateway) -> str | None:
    """Stop a gateway, once answers under way came to their end; None where it was gone, else how it had to be ended."""
    try:
        drain_s = float(
            strict_json.loads(Path(gateway.settings).read_text(encoding="utf-8"))["limits"]["drain_s"]
        )
    except (OSError, ValueError, KeyError):
        drain_s = 0.0
    how = _end(gateway.process, GATEWAY, drain_s + TERM_WAIT_S)
    forget(gateway)
    return how


def kill_gateway(gateway: Gateway) -> None:
    """End a gateway that answers nobody, and what it may have under way with it."""
    if gateway_runs(gateway):
        with contextlib.suppress(ProcessLookupError):
            os.kill(gateway.process.pid, signal.SIGKILL)
    _end(gateway.process, GATEWAY)
    forget(gateway)


def forget(gateway: Gateway) -> None:
    """Remove the control socket that a gateway which is gone has left."""
    with contextlib.suppress(OSError):
        Path(gateway.control).unlink(missing_ok=True)
        Path(gateway.control).parent.rmdir()


def stop_strays(path: Path, known: Service | None) -> list[str]:
    """Stop what was started for the record at ``path`` and it does not speak of; returns what it was.

    A start that is killed between a process's first breath and its record leaves one.
    """
    said, folder = [], folder_of(path)
    kept = {known.gateway.process.pid, known.keeper.pid if known.keeper else 0} if known else set()
    for process in processes.everything():
        words = process.command
        ours = any(word == str(path) or word.startswith(str(folder) + os.sep) for word in words)
        for module in (GATEWAY, KEEPER):
            if ours and module in words and process.pid not in kept:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
                said.append(f"stopped what an interrupted start had left (process {process.pid}, {module})")
    stray = server.stop_strays(folder / "versions", known.version if known else None)
    if stray:
        said.append(f"stopped a server that an interrupted start had left (process {stray})")
    return said


def _module_runs(mark: Mark, module: str) -> bool:
    process = mark.process()
    return process is not None and module in process.command


def _end(mark: Mark, module: str, wait_s: float = TERM_WAIT_S) -> str | None:
    """End a process; None where it was gone, else how it had to be ended (empty: by asking)."""
    if not _module_runs(mark, module):
        return None
    for number, wait in ((signal.SIGTERM, wait_s), (signal.SIGKILL, KILL_WAIT_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(mark.pid, number)
            os.kill(mark.pid, signal.SIGCONT)  # a stopped process hears of SIGTERM only once it goes on
        deadline = time.monotonic() + wait
        while _module_runs(mark, module):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        else:
            return ", by force" if number == signal.SIGKILL else ""
    raise RuntimeError(f"process {mark.pid} ({module}) cannot be stopped")


def plain(version: ServerRecord, models: dict[str, dict[str, str]]) -> dict[str, Any]:
    """A version as the gateway's settings have it."""
    return {
        "identity": version.export_identity,
        "address": version.address,
        "metrics": authority(reachable(version.host), version.metrics_port),
        "models": models,
    }
