"""From what is serving, or from any file that was published, back to the data.

lifecycle trace 127.0.0.1:8000
lifecycle trace llama-tiny
lifecycle trace runs/llama-tiny/export/latest/bundle/model.safetensors
lifecycle trace /somewhere/else/model.safetensors      # a copy: found by its digest
"""

from __future__ import annotations

import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from pipeline import strict_json
from pipeline.errors import UserError
from pipeline.gateway.settings import is_loopback
from pipeline.record.bases import settings_shown
from pipeline.record.bases import words_of as base_words
from pipeline.record.history import History, all_artifacts, find_run, history, is_recipe
from pipeline.runner.identity import SHORT
from pipeline.runner.store import Artifact
from pipeline.schema import flat
from pipeline.serving import client, service
from pipeline.stages.seals import sha256_file
from pipeline.wording import counted

TIMEOUT_S = 5.0
SHOWN_FILES = 6  # of a step
# An address of IPv6 stands in brackets, as in a URL.
ADDRESS = re.compile(r"(?:https?://)?(?:[\w.-]+|\[[\da-fA-F:.]+(?:%[\w.-]+)?\]):\d+/?")


def trace(words: str, runs: Path, certificate: str | None = None) -> dict[str, Any]:
    """The record behind an address, a recipe, an artifact or a published file, as plain values.

    ``certificate`` is the file of a server's own, where it speaks TLS and no authority has signed it.
    ``steps`` go from what was asked for back to the data.  Raises :class:`UserError` when
    nothing under ``runs`` made it.
    """
    start: dict[str, Any] = {"asked": words}
    if ADDRESS.fullmatch(words) and not Path(words).exists():
        start["served"] = served_models(words, certificate)
        found = _from_server(words, start["served"], runs)
    elif Path(words).is_file() and not is_recipe(words, runs) and not _published(words, runs):
        found = _from_copy(Path(words), runs, start)
    else:
        found = find_run(words, runs)
        start |= _live_server(found, runs)
    return {**start, "steps": [_step(each) for each in reversed(found.artifacts)], "gone": found.gone}


def served_models(address: str, certificate: str | None = None) -> list[dict[str, str]]:
    """What a Triton server says it serves: model names and the identities of their exports."""
    scheme = "https" if certificate else "http"
    base = address.rstrip("/") if "://" in address else f"{scheme}://{address.rstrip('/')}"
    try:
        tls = client.trusting(certificate, base.partition("://")[2]) if certificate else None
        name = str(_ask(f"{base}/v2", tls).get("name", ""))
        models = [entry["name"] for entry in _ask(f"{base}/v2/repository/index", tls, {})]
        configs = {model: _ask(f"{base}/v2/models/{model}/config", tls) for model in models}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no Triton server answers at {address}: {error}") from None
    found = []
    for model, config in configs.items():
        parameter = config.get("parameters", {}).get("lifecycle_identity", {}).get("string_value")
        if parameter:
            found.append({"model": model, "identity": parameter, "server": name})
    if not found:
        raise UserError(
            f"the server at {address} serves {', '.join(models) or 'nothing'}, none of it from here"
        )
    return found


def words_of(traced: dict[str, Any]) -> str:
    """A trace for people."""
    lines = []
    for model in traced.get("served", ()):
        lines.append(f"{traced['asked']} serves {model['model']}: export {model['identity']}")
    if "copy_of" in traced:
        lines.append(f"{traced['asked']} is {traced['copy_of']} (sha256 {traced['sha256']})")
    for step in traced["steps"]:
        made = step["made_by"]
        lines += [
            "",
            f"{step['stage']}  {step['identity']}",
            f"  {step['headline']}",
            f"  {step['path']}",
            f"  made {step['started']} in {step['seconds']:g} s on {made['machine'].get('host', '?')}"
            + (f", in {step['attempts']} attempts" if step["attempts"] > 1 else ""),
            f"  code: commit {made['code']['commit'] or 'unknown'}, source {made['code']['source_digest']}",
            f"  toolchain: {made['toolchain']['name']}, Python {made['toolchain']['python']}, "
            f"lock {made['toolchain']['lock_digest']}",
            *([f"  starts from: {base_words(step['base'])}"] if "base" in step else []),
            f"  settings: {', '.join(f'{k}={v}' for k, v in step['settings'].items())}",
        ]
        lines += [
            f"  rests on {name}: {each['stage']} {each['identity']}" for name, each in step["parents"].items()
        ]
        lines += [f"  read {role}: {_input_words(each)}" for role, each in step["inputs"].items()]
        if step["gate"] and step["gate"]["override_reason"]:
            lines.append(f"  gate overridden: {step['gate']['override_reason']}")
        files = list(step["files"].items())
        lines += [
            f"  published {name}: {counted(entry['bytes'], 'byte')}, sha256 {entry['sha256']}"
            for name, entry in files[:SHOWN_FILES]
        ]
        if files[SHOWN_FILES:]:
            lines.append(f"  and {counted(len(files) - SHOWN_FILES, 'more file')} (--json has them all)")
    lines += [
        f"\n{each['stage']} {each['identity']} is gone from the store; its digest was {each['output_digest']}"
        for each in traced["gone"]
    ]
    return "\n".join(lines).strip()


def _step(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    counts = manifest["metrics"].get("inputs", {})
    return {
        "stage": manifest["stage"],
        "recipe": manifest["recipe"],
        "identity": manifest["identity"],
        "output_digest": manifest["output_digest"],
        "path": str(artifact.path),
        "headline": manifest["headline"],
        "started": manifest["started"],
        "seconds": manifest["seconds"],
        "attempts": len(manifest["attempts"]),
        "made_by": manifest["made_by"],
        "settings": settings_shown(flat(manifest["parts"]["settings"]), manifest.get("base")),
        **({"base": manifest["base"]} if manifest.get("base") else {}),
        "parents": manifest["parents"],
        "inputs": {role: {**each, **counts.get(role, {})} for role, each in manifest["inputs"].items()},
        "gate": manifest.get("gate"),
        "files": manifest["files"],
    }


def _input_words(each: dict[str, Any]) -> str:
    words = [f"digest {each['digest']}"]
    if "bytes" in each:
        words.append(counted(each["bytes"], "byte"))
    if "records" in each:
        words.append(counted(each["records"], "record"))
    if each.get("unreadable"):
        words.append(f"{each['unreadable']:,} unreadable")
    if "path" in each:
        words.append(f"from {each['path']}")
    return ", ".join(words)


def _from_server(address: str, served: list[dict[str, str]], runs: Path) -> History:
    wanted = served[0]["identity"]
    for artifact in all_artifacts(runs):
        if artifact.identity == wanted:
            found = history(artifact)
            # The start of the server is an artifact of its own, above the export.
            deployed = [
                each
                for each in all_artifacts(runs)
                if each.manifest["parents"].get("export", {}).get("identity") == wanted
            ]
            newest = max(deployed, key=lambda each: str(each.manifest["started"]), default=None)
            return History([*found.artifacts, *([newest] if newest else [])], found.gone)
    raise UserError(
        f"{address} serves the export {wanted}, which is not in {runs}; name the folder that made it: --runs FOLDER"
    )


def _from_copy(path: Path, runs: Path, start: dict[str, Any]) -> History:
    start["sha256"] = sha256_file(path)
    for artifact in all_artifacts(runs):
        for name, entry in artifact.manifest["files"].items():
            if entry["sha256"] == start["sha256"]:
                start["copy_of"] = f"{name} of {artifact.manifest['stage']} {artifact.identity[:SHORT]}"
                return history(artifact)
    raise UserError(f"{path} (sha256 {start['sha256']}) was not published by any step in {runs}")


def _published(words: str, runs: Path) -> bool:
    """Whether a file lies in an artifact's folder, under the name it was published with."""
    try:
        found = find_run(words, runs).artifacts
    except UserError:
        return False
    inside = Path(words).resolve()
    return any(
        inside.is_relative_to(each.path)
        and inside.relative_to(each.path).as_posix() in each.manifest["files"]
        for each in found
    )


def _live_server(found: History, runs: Path) -> dict[str, Any]:
    """Where the traced recipe's server answers, if it does."""
    recipe = str(found.artifacts[-1].manifest["recipe"])
    record = service.read(runs / recipe / "deploy" / "server.json")
    if record is None or not service.gateway_runs(record.gateway):
        return {}
    identities = {each.identity for each in found.artifacts}
    return {"address": record.gateway.address} if record.identity in identities else {}


def _ask(url: str, tls: ssl.SSLContext | None, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else strict_json.dumps(body).encode("utf-8")
    request = urllib.request.Request(url, data=data, headers=client.headers())
    # A proxy in the environment knows another machine by this one's loopback.
    direct = (
        [urllib.request.ProxyHandler({})] if is_loopback(urllib.parse.urlsplit(url).hostname or "") else []
    )
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=tls), *direct)
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return json.loads(answer.read())
    except urllib.error.HTTPError as error:
        raise ValueError(f"{url} says {error.code}") from None
