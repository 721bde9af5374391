"""What makes two steps the same step.

A step's identity is the SHA-256 of the canonical form of its *parts*::

    stage      name and declared version
    settings   the stage's own sections, as resolved, without the settings that are
               declared not to bear identity (ports, workers, log intervals)
    parents    the output digest of every artifact that it consumes
    inputs     the digests of the files that it reads from outside

Machine, site, paths, times and image tags are never part of it.  The canonical form is
JSON with sorted keys; a value that JSON cannot carry exactly is refused, not guessed.
"""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any

from pipeline import schema, strict_json
from pipeline.curation import path_settings
from pipeline.graph import Step

SHORT = 12  # characters of an identity in a path; the manifest holds all 64


def canonical(value: Any) -> str:
    """The one text form of a plain value, the same in every process.

    Raises ``TypeError`` for anything but None, bool, int, finite float, str, and lists
    and string-keyed dicts of these.
    """
    _refuse_inexact(value)
    return strict_json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hexadecimal) of a plain value's canonical form."""
    return hashlib.sha256(canonical(value).encode("utf-8")).hexdigest()


def parts_of(
    step: Step, recipe: schema.Recipe, parent_digests: dict[str, str], inputs: dict[str, str]
) -> dict[str, Any]:
    """The parts of a step's identity; :func:`digest_of` of them is the identity."""
    return {
        "stage": {"name": step.name, "version": step.stage.version},
        "settings": _settings(step.stage.sections, recipe),
        "parents": dict(sorted(parent_digests.items())),
        "inputs": dict(sorted(inputs.items())),
    }


def differences(new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    """Field by field, how two sets of parts differ: ``train.lr: 0.0003 -> 0.0001``."""
    found = []
    if new["stage"] != old["stage"]:
        found.append(f"stage version: {old['stage']['version']} -> {new['stage']['version']}")
    before, after = schema.flat(old["settings"]), schema.flat(new["settings"])
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key) and not _told_by_parts(key, before, after):
            found.append(f"{key}: {before.get(key)} -> {after.get(key)}")
    for name in sorted(new["parents"].keys() | old["parents"].keys()):
        if new["parents"].get(name) != old["parents"].get(name):
            found.append(f"the output of {name} changed")
    for name in sorted(new["inputs"].keys() | old["inputs"].keys()):
        shown = name.rpartition("/")[2] if name.startswith("sources.") else name
        if name not in old["inputs"]:
            found.append(f"input {shown} is new")
        elif name not in new["inputs"]:
            found.append(f"input {shown} is gone")
        elif new["inputs"][name] != old["inputs"][name]:
            found.append(f"input {shown} changed")
    return found


def _told_by_parts(key: str, *sides: dict[str, Any]) -> bool:
    """Whether a setting is an empty mapping on one side, and has keys on the other, which are told one by one."""
    return any(side.get(key) == {} for side in sides) and any(
        name.startswith(f"{key}.") for side in sides for name in side
    )


def _settings(sections: tuple[str, ...], recipe: schema.Recipe) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in sections:
        section, _, name = entry.partition(".")
        values = _without_paths(section, schema.identity_values(getattr(recipe, section)))
        found.setdefault(section, {}).update({name: values[name]} if name else values)
    return found


def _without_paths(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Drop paths: the digests of what they lead to stand under ``inputs`` instead."""
    if section == "model":
        return {key: value for key, value in values.items() if key != "base"}
    if section == "curate":
        kept = copy.deepcopy(values)
        kept["sources"] = [{k: v for k, v in s.items() if k != "path"} for s in kept["sources"]]
        for _, holder, key in path_settings(kept):
            holder[key] = None
        return kept
    return values


def _refuse_inexact(value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise TypeError(f"a key of an identity must be text, not {key!r}")
            _refuse_inexact(inner)
    elif isinstance(value, list):
        for inner in value:
            _refuse_inexact(inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value} has no exact form")
    elif value is not None and not isinstance(value, bool | int | str):
        raise TypeError(f"a {type(value).__name__} has no exact form: {value!r}")
