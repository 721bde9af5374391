"""Deploy: a gateway and a real Triton that serves a published export; both outlive this step.

Triton reads its model repository from the export's artifact folder, through links, and
writes nothing there.  The record of what runs (:mod:`pipeline.serving.service`) is the file that
the job names in ``extra.server_record``; everything else lies in a folder beside it.  A version that runs is
replaced without losing a request (:mod:`.replace`), once the new one has answered
(:mod:`.probes`); a :mod:`.keeper` starts anew what dies.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from pathlib import Path

from pipeline import schema, strict_json
from pipeline.gateway.addresses import authority, host_of
from pipeline.gateway.settings import is_loopback, load
from pipeline.serving import control, keeping, server, service
from pipeline.serving.targets import IMAGES
from pipeline.stages.deploy import gateway, ports, probes, replace, triton, versions
from pipeline.stages.step import InputError, Step, write_json
from pipeline.surroundings import proxied

REMEMBERED = 5  # exports that `rollback` can go back through


def run(step: Step) -> None:
    """Run the deploy stage.

    Raises :class:`pipeline.stages.step.InputError` for a taken port and for a repository that needs an engine that is
    not here, ``RuntimeError`` with the end of the log for a server that does not come to answer.
    """
    settings = step.section(schema.Deploy)
    path = Path(step.extra["server_record"])
    export = versions.Export.read(step.inputs["export"])
    lacking = triton.lacking(export.folder / "repository")
    if lacking is not None:
        image = IMAGES.get(export.target, "a container that has it")
        raise InputError(
            f"the export is for {export.target}, and this machine's Triton has no {lacking}: serve its repository "
            f"with NVIDIA GPUs in {image}; for a server here, export.target=cpu-openvino"
        )
    ports.check_distinct(settings)
    for words in gateway.check(settings):
        step.warning(words)
    service.stop_keeper(path)  # which may be mending what is about to be replaced
    with service.changing(path):
        try:
            deployed, figures = _replaced(step, settings, path, export)
        except (triton.StartFailed, gateway.StartFailed, control.ControlError) as error:
            step.error(str(error))
            raise
        finally:
            _keep(path)
    curl = curl_line(deployed)
    write_json(
        step.output / "deployment.json",
        {
            "address": deployed.gateway.url,
            "openai": f"{deployed.gateway.url}/v1",
            "grpc_address": authority(server.reachable(deployed.gateway.host), deployed.gateway.grpc_port),
            "metrics": f"http://127.0.0.1:{deployed.gateway.metrics_port}/metrics",
            "models": deployed.models,
            "export_identity": deployed.identity,
            "curl": curl,
        },
    )
    step.message(
        f"{', '.join(sorted(deployed.models))} answers at {deployed.gateway.url} "
        f"(logs: {deployed.gateway.log}, {deployed.version.log})"
    )
    step.message(f"try: {curl}")
    step.finish(metrics=figures, headline=deployed.gateway.url)


def _replaced(
    step: Step, settings: schema.Deploy, path: Path, export: versions.Export
) -> tuple[service.Service, dict[str, float]]:
    """What runs now, and the figures of how it came to."""
    before = service.read(path)
    for line in service.stop_strays(path, before):
        step.message(line)
    running = before.gateway if before is not None and service.gateway_runs(before.gateway) else None
    # A service that answers is not given up for one that cannot start.
    ports.check_free(settings, _ports(running) if running else ())
    step.phase("starting Triton")
    began = time.monotonic()
    version, seconds = versions.start(
        export,
        service.folder_of(path) / "versions",
        before.version if before is not None else None,
        step.threads,
        settings.start_timeout_s,
        lambda waited: step.progress(
            waited, settings.start_timeout_s, "s", "waiting for the first answer", every_s=5.0
        ),
    )
    ready_s = time.monotonic() - began
    try:
        step.phase("asking the new version")
        asked, faults = probes.check(version, export.folder, settings.probe_prompts)
        if faults:
            raise triton.StartFailed(f"the new version gets no traffic: {'; '.join(faults)}")
        deployed = service.Service(
            gateway=_gateway(step, settings, path, before),
            version=version,
            export=str(export.folder),
            models=export.models,
            previous=_previous(before, export),
            threads=step.threads,
            start_timeout_s=settings.start_timeout_s,
        )
        step.phase("switching")
        service.write(path, deployed)  # first: whoever goes on after us finds what is meant
        try:
            replace.switch(deployed.gateway, version, export.models)
        except BaseException:
            _restore(path, before, deployed.gateway)
            raise
    except BaseException:
        server.stop(version)
        raise
    if before is not None:
        step.phase("draining the version before")
        replace.drain(deployed.gateway, before.version, settings.limits.drain_s, step.message)
    return deployed, {
        "ready_s": round(ready_s, 2),
        "first_answer_s": round(seconds, 3),
        "parity_prompts": asked,
        "server_peak_memory_gb": server.peak_memory_gb(version),
    }


def _gateway(
    step: Step, settings: schema.Deploy, path: Path, before: service.Service | None
) -> service.Gateway:
    """The gateway that runs, where it has these settings; else another in its place."""
    folder, wanted = service.folder_of(path), service.settings_of(settings)
    if before is None or not service.gateway_runs(before.gateway):
        ports.check_free(settings, just_stopped=before is not None)
        return gateway.start(folder, wanted)
    other = service.changed(before.gateway, settings)
    if not other:
        return before.gateway
    step.message(
        f"{', '.join(other)} changed: the gateway is started anew, and takes no requests for a moment"
    )
    old = load(Path(before.gateway.settings))
    service.stop_gateway(before.gateway)
    try:
        ports.check_free(settings, just_stopped=True)
        return gateway.start(folder, wanted)
    except BaseException:
        back = gateway.start(folder, dataclasses.replace(old, control=None))
        replace.switch(back, before.version, before.models)
        service.write(path, dataclasses.replace(before, gateway=back))
        raise


def _restore(path: Path, before: service.Service | None, running: service.Gateway) -> None:
    """The record as it was before a switch that failed."""
    if before is None:
        service.stop_gateway(running)
        path.unlink()
    else:
        service.write(path, dataclasses.replace(before, gateway=running))


def _keep(path: Path) -> None:
    """Have a keeper where there is something to keep."""
    record = service.read(path)
    if record is not None and not service.keeper_runs(record):
        keeping.start(Path(sys.executable), path, record)


def _previous(before: service.Service | None, export: versions.Export) -> list[service.Earlier]:
    """The exports to go back to, latest first, each once; the one that is served now is none of them.

    After going back to one, those that came after it are forgotten, so that going back again goes further back.
    """
    if before is None:
        return []
    places = [place for place, each in enumerate(before.previous) if each.identity == export.identity]
    if places:
        return before.previous[places[0] + 1 :]
    found = [service.Earlier(before.identity, before.export), *before.previous]
    unique = {each.identity: each for each in reversed(found) if each.identity != export.identity}
    return list(reversed(unique.values()))[:REMEMBERED]


def _ports(running: service.Gateway) -> tuple[int, ...]:
    return running.http_port, running.grpc_port, running.metrics_port


def curl_line(deployed: service.Service) -> str:
    """A shell line that asks the server a question and shows the answer as it comes."""
    model = sorted(deployed.models)[0]
    body = {"model": model, "messages": [{"role": "user", "content": "What does `os.path.join` do?"}]}
    words = ["curl -sN"]
    if is_loopback(host_of(deployed.gateway.address)) and proxied(os.environ):
        words.append("--noproxy '*'")
    if deployed.gateway.tls_certificate:
        words.append(f"--cacert {shlex.quote(deployed.gateway.tls_certificate)}")
    if deployed.gateway.needs_key:
        words.append('-H "Authorization: Bearer $LIFECYCLE_API_KEY"')
    url = shlex.quote(f"{deployed.gateway.url}/v1/chat/completions")
    words.append(f"{url} -H 'Content-Type: application/json'")
    words.append(f"-d '{strict_json.dumps({**body, 'stream': True})}'")
    return " ".join(words)
