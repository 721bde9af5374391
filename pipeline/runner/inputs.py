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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.documents import SUFFIXES, named_files, source_files
from pipeline.errors import UserError
from pipeline.recipe import LoadedRecipe
from pipeline.runner.digests import DigestMemory
from pipeline.toolchains import Toolchain


def check_inputs(loaded: LoadedRecipe) -> None:
    """Raise :class:`UserError` for an input path that is not there or holds nothing."""
    curate = loaded.settings.curate
    for index, source in enumerate(curate.sources):
        if source.path is not None:
            key = f"curate.sources.{index}.path"
            files = source_files(source)
            if not Path(source.path).exists():
                raise UserError(f"{loaded.origin(key)}: {key}: there is no file or folder {source.path}")
            if not files:
                kinds = " or ".join(f"*{suffix}" for suffix in SUFFIXES[source.kind])
                raise UserError(f"{loaded.origin(key)}: {key}: {source.path} holds no {kinds} file")
    for name in ("instructions", "preferences"):
        path = getattr(curate, name)
        if path is not None and not Path(path).is_file():
            raise UserError(f"{loaded.origin(f'curate.{name}')}: curate.{name}: there is no file {path}")
    if loaded.settings.model.base is not None:
        check_base_model(loaded)


def check_base_model(loaded: LoadedRecipe) -> None:
    """Raise :class:`UserError` unless ``model.base`` is a folder one can start from."""
    base = Path(str(loaded.settings.model.base))
    where = f"{loaded.origin('model.base')}: model.base"
    if not base.is_dir():
        raise UserError(f"{where}: there is no folder {base}; give a local Hugging Face folder")
    if not (base / "config.json").is_file():
        raise UserError(f"{where}: {base} has no config.json, so it is not a Hugging Face model folder")
    if not any(base.glob("*.safetensors")):
        pickled = [p.name for p in base.glob("*.bin")] + [p.name for p in base.glob("*.pt*")]
        hint = f" ({', '.join(sorted(pickled))} is a pickle and is not read)" if pickled else ""
        raise UserError(f"{where}: {base} has no weights: no *.safetensors file{hint}")
    index = base / "model.safetensors.index.json"
    if index.is_file():
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if not (base / shard).is_file())
        if missing:
            raise UserError(f"{where}: {base} is not complete: {', '.join(missing)} missing")
    if not (base / "tokenizer.json").is_file():
        raise UserError(f"{where}: {base} has no tokenizer.json (a Hugging Face fast tokenizer is needed)")


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
        for file, name in named_files(source):
            found[f"sources.{index}/{name}"] = _file(file, memory)
    for name in ("instructions", "preferences"):
        path = getattr(curate, name)
        if path is not None:
            found[name] = _file(Path(path), memory)
    return found


def base_model(base: Path, memory: DigestMemory) -> dict[str, Input]:
    """A base model's configuration, tokenizer and weights, by role."""
    files = sorted(p for p in base.iterdir() if p.suffix in (".json", ".safetensors", ".jinja", ".model"))
    return {f"base/{file.name}": _file(file, memory) for file in files}


def _file(path: Path, memory: DigestMemory) -> Input:
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
