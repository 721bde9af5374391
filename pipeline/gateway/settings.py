"""What the gateway is told: one JSON file, written by the deploy stage or by the values of a cluster."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
import re
import ssl
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.gateway.addresses import bare

# What Triton is sent at most.  The one in nvidia-pytriton 0.7.0 (24.10) answers 2 MiB and dies of 4 MiB, on a request
# as good as any (2026-11-22).
LARGEST_BODY = 2 * 1024 * 1024


ANY = "*"
HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@]+")


class SettingsError(ValueError):
    """A setting that is missing, unknown or impossible; the text is meant for people."""


@dataclass(frozen=True)
class Limits:
    """What a client may ask for, and how long anything may take (seconds)."""

    max_body_bytes: int = 1_048_576
    max_requests: int = 256  # under way at once, over all clients; more are refused with 503
    max_tokens: int | None = None  # of one answer; None: what the model's context holds
    requests_per_minute: int | None = None  # of one API key (of one address where there are no keys)
    first_token_s: float = 60.0
    between_tokens_s: float = 30.0
    request_s: float = 600.0  # a whole answer
    body_s: float = 30.0  # for the next part of a request's body
    drain_s: float = 60.0  # for answers under way when a version or the gateway goes


@dataclass(frozen=True)
class VersionSettings:
    """A version of the model: where its Triton listens and what it serves."""

    identity: str  # of the export
    address: str  # host:port of Triton's HTTP
    metrics: str  # host:port of Triton's own metrics, which the gateway's metrics port passes on
    models: dict[str, dict[str, str]]  # name for clients -> {"model": Triton's name, "lora": adapter or ""}


@dataclass(frozen=True)
class Settings:
    """All of it.  ``control`` is the UNIX socket over which versions are switched (None: no switching).

    ``metrics_host`` needs no key wherever it listens: a cluster's Prometheus brings none.  The metrics hold names of
    models and counts, nothing of requests; let no more than the pod's or the composition's own network reach it.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    metrics_port: int = 8002
    metrics_host: str = "127.0.0.1"
    control: str | None = None
    keys_file: str | None = None  # one API key a line, "name: key"; see :mod:`.keys`
    insecure: bool = False  # listen beyond loopback without API keys
    hosts: list[str] = field(
        default_factory=list
    )  # names of this gateway besides loopback's; see :mod:`.browsers`
    cors_origins: list[str] = field(default_factory=list)  # of web pages that may ask
    tls_certificate: str | None = None
    tls_key: str | None = None
    probe_every_s: float = 2.0  # a version that nobody asks is asked for a token so often
    probe_timeout_s: float = 10.0
    keeper: list[str] = field(
        default_factory=list
    )  # Python of its toolchain and the record; see :mod:`.keeping`
    log: str | None = None  # a file that is begun anew when it is full (None: standard output)
    log_requests: bool = (
        True  # protocol, model, caller, outcome, times and token counts; never prompts or answers
    )
    limits: Limits = field(default_factory=Limits)
    version: VersionSettings | None = None


def load(path: Path) -> Settings:
    """Read and check a settings file.  Raises :class:`SettingsError`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"{path} is no JSON: {error}") from None
    settings = parse(found, str(path))
    check(settings)
    return settings


def parse(found: Any, where: str) -> Settings:
    """Settings of what a JSON file holds.  Raises :class:`SettingsError` for an unknown name or a wrong type."""
    made: Settings = _made(Settings, found, where)
    return made


def version_of(found: Any, where: str) -> VersionSettings:
    """A version's settings.  Raises :class:`SettingsError`."""
    made: VersionSettings = _made(VersionSettings, found, where)
    for name, route in made.models.items():
        if not isinstance(route, dict) or set(route) != {"model", "lora"}:
            raise SettingsError(f"{where}: models: {name} must have model and lora")
    return made


def check(settings: Settings) -> None:
    """Raise :class:`SettingsError` for what must not be."""
    if settings.version is not None:
        version_of(dataclasses.asdict(settings.version), "version")
    if len(settings.keeper) not in (0, 2):
        raise SettingsError(
            "keeper must be empty, or the Python of its toolchain and the record of what runs"
        )
    for origin in settings.cors_origins:
        if origin not in (ANY, "null") and not ORIGIN.fullmatch(origin):
            raise SettingsError(
                f"cors_origins: {origin!r} is no origin; one is scheme, host and port alone: https://chat.example.org"
            )
    for host in settings.hosts:
        if host != ANY and not HOST.fullmatch(host):
            raise SettingsError(f"hosts: {host!r} is no host name; one has no scheme, port or path")
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise SettingsError("tls_certificate and tls_key belong together; one of them is missing")
    if not is_loopback(settings.host) and not settings.keys_file and not settings.insecure:
        raise SettingsError(
            f"host is {settings.host}, which others can reach: name a keys_file with API keys, or set insecure"
        )
    if settings.limits.max_body_bytes > LARGEST_BODY:
        raise SettingsError(
            f"limits: max_body_bytes is {settings.limits.max_body_bytes}; Triton is sent {LARGEST_BODY} at most"
        )
    ports = (settings.http_port, settings.grpc_port, settings.metrics_port)
    if len(set(ports)) < len(ports):
        raise SettingsError(f"the three ports must differ; they are {', '.join(map(str, ports))}")


def check_pair(certificate: str, key: str) -> None:
    """Raise :class:`SettingsError` for files that cannot serve TLS together."""
    try:
        # An empty password: a key that wants one is refused, and asks no terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password="")
    except OSError as error:  # ssl's own error is one
        why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
        raise SettingsError(
            f"tls_certificate {certificate} and tls_key {key} cannot be used together: {why}"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address; one of IPv6 may stand in brackets, as in a URL."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(bare(host)).is_loopback
    except ValueError:
        return False


def _made(kind: Any, found: Any, where: str) -> Any:
    if not isinstance(found, dict):
        raise SettingsError(f"{where}: expected an object, not {type(found).__name__}")
    hints = typing.get_type_hints(kind)
    values = {}
    for name, value in found.items():
        if name not in hints:
            raise SettingsError(f"{where}: unknown setting {name!r}; there are {', '.join(hints)}")
        values[name] = _value(hints[name], value, f"{where}: {name}")
    lacking = [
        field.name
        for field in dataclasses.fields(kind)
        if field.name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if lacking:
        raise SettingsError(f"{where}: {', '.join(lacking)} is missing")
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if dataclasses.is_dataclass(option):
            return _made(option, value, where)
        if typing.get_origin(option) is dict and isinstance(value, dict):
            return value
        if typing.get_origin(option) is list and isinstance(value, list):
            return [_value(typing.get_args(option)[0], each, where) for each in value]
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if isinstance(option, type) and type(value) is option:
            return value
    wanted = " or ".join(getattr(option, "__name__", str(option)) for option in options)
    raise SettingsError(f"{where} is {value!r}; it must be {wanted}")
