"""Starting the gateway of a recipe, in its own toolchain."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path

from pipeline import places, schema, strict_json
from pipeline.gateway import keys
from pipeline.gateway import settings as own
from pipeline.serving import control, service
from pipeline.serving.background import begin
from pipeline.serving.processes import Mark
from pipeline.stages.step import InputError
from pipeline.toolchains import Toolchain

START_S = 60.0
LOG_LINES = 15


class StartFailed(RuntimeError):
    """The gateway ended, or did not listen in time."""


def check(deploy: schema.Deploy) -> list[str]:
    """Raise :class:`InputError` for what would keep a gateway from starting, before anything is stopped for it.

    Returns what a person should know all the same.
    """
    toolchain = Toolchain("gateway")
    if not toolchain.ready():
        raise InputError("the gateway toolchain is not installed as its lock says: run `make env-gateway`")
    wanted = service.settings_of(deploy)
    try:
        own.check(wanted)
        if wanted.keys_file is not None:
            keys.read(Path(wanted.keys_file))
        if wanted.tls_certificate and wanted.tls_key:
            own.check_pair(wanted.tls_certificate, wanted.tls_key)
    except own.SettingsError as error:
        raise InputError(f"deploy: {error}") from None
    secret = {"keys_file": wanted.keys_file, "tls_key": wanted.tls_key}
    seen = {name: keys.exposed(Path(path)) for name, path in secret.items() if path is not None}
    return [f"deploy.{name}: {words}" for name, words in seen.items() if words]


def start(folder: Path, wanted: own.Settings) -> service.Gateway:
    """Start a gateway and wait until it can be spoken to; it has no version yet.

    Raises :class:`StartFailed` with the end of its log.
    """
    toolchain = Toolchain("gateway")
    # A folder of runs, and a TMPDIR, may have a longer path than a socket can.
    socket = str(places.socket_folder("gateway-") / "control.sock")
    file, log = folder / "gateway.json", folder / "gateway.log"
    kept = [sys.executable, str(folder.with_suffix(".json"))]
    wanted = dataclasses.replace(wanted, control=socket, log=str(log), keeper=kept)
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(strict_json.dumps(dataclasses.asdict(wanted), indent=2) + "\n", encoding="utf-8")
    process = begin(toolchain.python, service.GATEWAY, file, log)
    made = service.Gateway(
        process=Mark.of(process.pid),
        host=wanted.host,
        http_port=wanted.http_port,
        grpc_port=wanted.grpc_port,
        metrics_port=wanted.metrics_port,
        tls_certificate=wanted.tls_certificate,
        needs_key=wanted.keys_file is not None,
        control=socket,
        settings=str(file),
        log=str(log),
    )
    deadline = time.monotonic() + START_S
    while True:
        try:
            control.state(socket)
            return made
        except control.ControlError:
            status = process.poll()
            if status is not None or time.monotonic() > deadline:
                service.stop_gateway(made)
                what = (
                    f"ended with status {status}"
                    if status is not None
                    else f"did not listen within {START_S:g} s"
                )
                raise StartFailed(f"the gateway {what}:\n{_end(log)}") from None
            time.sleep(0.05)


def _end(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in lines[-LOG_LINES:])
