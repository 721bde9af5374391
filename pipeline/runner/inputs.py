"""What a recipe reads from outside: checked before anything starts, digested for identity.

Files are named in an identity by the role they play (``sources.0/part-1.jsonl``), never
by where they lie, so the same data in another folder is the same input.  A Python
package's documentation is identified by the source hashes that its wheel recorded at
installation; the standard library by the interpreter's version.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import adapters as adapter_rules
from pipeline import base_files, schema
from pipeline.curation import path_settings
from pipeline.documents import is_remote, local_units, suffixes
from pipeline.errors import UserError
from pipeline.recipe import LoadedRecipe
from pipeline.runner import base, base_record
from pipeline.runner.digests import DigestMemory
from pipeline.runner.identity import digest_of
from pipeline.serving.targets import REQUEST, TARGETS
from pipeline.stages.step import write_json
from pipeline.toolchains import ROOT, Toolchain

# Settings that name a folder; all others name a file.
FOLDERS = ("curate.semantic_duplicates.model",)
FOLDER_PARAMETERS = (".hf_model_name", ".cache_dir")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")  # PEFT's, pickles left out


def check_inputs(loaded: LoadedRecipe) -> None:
    """Raise :class:`UserError` for an input path that is not there or holds nothing."""
    curate = loaded.settings.curate
    for index, source in enumerate(curate.sources):
        if source.path is not None and not is_remote(source.path):
            key = f"curate.sources.{index}.path"
            if not Path(source.path).exists():
                raise UserError(f"{loaded.origin(key)}: {key}: there is no file or folder {source.path}")
            if not local_units(source):
                kinds = " or ".join(f"*{suffix}" for suffix in suffixes(source.kind))
                raise UserError(f"{loaded.origin(key)}: {key}: {source.path} holds no {kinds} file")
    for name, holder, key in path_settings(asdict(curate)):
        path, setting = holder[key], f"curate.{name}"
        if path is None:
            continue
        folder = setting in FOLDERS or setting.endswith(FOLDER_PARAMETERS)
        if folder and not Path(path).is_dir():
            raise UserError(f"{loaded.origin(setting)}: {setting}: there is no folder {path}")
        if not folder and not Path(path).is_file():
            raise UserError(f"{loaded.origin(setting)}: {setting}: there is no file {path}")
    for name, path in loaded.settings.export.adapters.items():
        setting = f"export.adapters.{name}"
        for file in ADAPTER_FILES:
            if not (Path(str(path)) / file).is_file():
                raise UserError(
                    f"{loaded.origin(setting)}: {setting}: {path} is no PEFT folder: it has no {file}"
                )
        wrong = _adapter_fault(loaded.settings.export, Path(str(path)) / ADAPTER_FILES[0])
        if wrong:
            raise UserError(f"{loaded.origin(setting)}: {setting}: {path}: {wrong}")
    if loaded.settings.model.base is not None:
        base.check(loaded)


def _adapter_fault(export: schema.Export, file: Path) -> str | None:
    """Why the target cannot serve an adapter of this configuration; None where it can."""
    try:
        config = base_files.json_object(file)
        base_files.tensors(file.with_name(ADAPTER_FILES[1]))
    except base_files.Broken as error:
        return str(error)
    except OSError as error:
        return f"{file.name} cannot be read: {error.strerror}"
    wrong = adapter_rules.kind_fault(config) or adapter_rules.fault(config)
    if wrong is None and TARGETS[export.target].adapters == REQUEST:
        wrong = adapter_rules.request_fault(config, export.serving.max_lora_rank)
    return wrong


@dataclass(frozen=True)
class Input:
    """Something that a step reads from outside: ``digest`` bears identity, the rest is for the record."""

    digest: str
    path: str | None = None
    bytes: int | None = None
    package: str | None = None

    def record(self) -> dict[str, Any]:
        """As a manifest keeps it."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def documents(curate: schema.Curate, toolchain: Toolchain, memory: DigestMemory) -> dict[str, Input]:
    """Everything that curation reads, by role."""
    found: dict[str, Input] = {}
    for index, source in enumerate(curate.sources):
        if source.kind == "python-docs":
            for package in source.packages:
                found[f"sources.{index}/{package}"] = Input(
                    package_digest(package, toolchain), package=package
                )
            continue
        if is_remote(str(source.path)):
            found |= _remote(index, source, toolchain)
            continue
        for unit in local_units(source):
            found[f"sources.{index}/{unit.name}"] = _file(Path(unit.path), memory)
    for name, holder, key in path_settings(asdict(curate)):
        if holder[key] is not None:
            found |= _outside(name, Path(holder[key]), memory)
    return found


def _outside(role: str, path: Path, memory: DigestMemory) -> dict[str, Input]:
    if not path.is_dir():
        return {role: _file(path, memory)}
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {f"{role}/{file.relative_to(path).as_posix()}": _file(file, memory) for file in files}


def _remote(index: int, source: schema.Source, toolchain: Toolchain) -> dict[str, Input]:
    """The files at an fsspec address, by the store's own stamps; nothing is read twice.

    Asked for in the toolchain that reads them, which has the clients.
    """
    toolchain.require()
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "source.json"
        write_json(job, asdict(source))
        asked = subprocess.run(
            [str(toolchain.python), "-m", "pipeline.stages.remote_files", str(job)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
    if asked.returncode != 0:
        raise UserError(
            f"curate.sources.{index}.path: {source.path} cannot be listed: {asked.stderr.strip()[-400:]}"
        )
    return {
        f"sources.{index}/{name}": Input(digest_of([name, size, stamp]), path=address, bytes=size)
        for name, address, size, stamp in json.loads(asked.stdout)
    }


def base_card(model: schema.Model) -> dict[str, Input]:
    """What a model card says of the base and its files do not: its name, revision and licence."""
    said = base_record.describe(model)
    if said is None:
        return {}
    return {"base's name and licence": Input(digest_of([said["name"], said["revision"], said["licence"]]))}


def base_model(model: schema.Model, memory: DigestMemory) -> dict[str, Input]:
    """A base model's configuration, tokenizer and weights, by role; a name where it is not here."""
    found = base.folder(model)
    if found is None:
        return {"base": Input(digest_of([model.base, model.revision]), path=model.base)}
    kinds = (".json", ".safetensors", ".jinja", ".model")
    files = sorted(p for p in found.iterdir() if p.suffix in kinds) if found.is_dir() else []
    return {f"base/{file.name}": _file(file, memory) for file in files}


def adapters(export: schema.Export, memory: DigestMemory) -> dict[str, Input]:
    """The files of the adapters that a request may choose, by role."""
    return {
        f"adapters.{name}/{file}": _file(Path(str(path)) / file, memory)
        for name, path in export.adapters.items()
        for file in ADAPTER_FILES
    }


def _file(path: Path, memory: DigestMemory) -> Input:
    if not path.is_file():  # a folder or a dead link under a file's name: curation says so
        return Input("no file", path=str(path))
    return Input(memory.digest(path), path=str(path), bytes=path.stat().st_size)


def package_digest(package: str, toolchain: Toolchain) -> str:
    """Digest of an installed package's Python sources, from its wheel's own record.

    Raises :class:`UserError` when the toolchain is not installed or lacks the package.
    """
    toolchain.require()
    if package == "stdlib":
        return f"python-{toolchain.python_version()}"
    site = toolchain.site_packages()
    if not (site / package).exists():
        raise UserError(
            f"curate.sources: package {package!r} is not installed in the {toolchain.name} toolchain; "
            f"add its distribution to configs/toolchains/{toolchain.name}.in, or leave it out"
        )
    pattern = re.compile(rf"^{re.escape(package)}/.*\.pyi?,sha256=")
    for record in sorted(site.glob("*.dist-info/RECORD")):
        lines = sorted(
            line for line in record.read_text(encoding="utf-8").splitlines() if pattern.match(line)
        )
        if lines:
            return hashlib.sha256("\n".join(lines).encode("utf-8")).hexdigest()
    raise UserError(f"curate.sources: package {package!r} has no installation record in {site}")
