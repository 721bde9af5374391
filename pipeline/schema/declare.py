"""How settings are declared and read back; the sections themselves lie beside this file."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
    identity: bool = True,
) -> Any:
    """Declare one setting: its default, its meaning and the values it accepts.

    ``ge``/``gt``/``le`` bound numbers (at least / more than / at most), ``choices`` lists
    the accepted words, and ``identity=False`` marks a setting that never changes results.
    """
    metadata = {"help": help, "ge": ge, "gt": gt, "le": le, "choices": choices, "identity": identity}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def hints(section: type) -> dict[str, Any]:
    """The resolved type of each field of a section."""
    return typing.get_type_hints(section)


def is_section(annotation: Any) -> bool:
    """Whether a field's type is itself a section (a dataclass)."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def is_open(annotation: Any) -> bool:
    """Whether a field is a mapping with keys of the user's choosing (``dict[str, Any]``)."""
    return typing.get_origin(annotation) is dict


def item_type(annotation: Any) -> Any:
    """The element type of a ``list[...]`` annotation, else None."""
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0]
    return None


def from_plain(section: type, values: dict[str, Any]) -> Any:
    """Rebuild a section from plain JSON values that :mod:`pipeline.recipe` validated.

    Raises ``TypeError`` for a key that the section does not have: the controller and the
    toolchain then run different versions of this file.
    """
    kinds = hints(section)
    built = {}
    for name, value in values.items():
        if name not in kinds:
            raise TypeError(f"{section.__name__} has no setting {name!r}")
        kind = kinds[name]
        element = item_type(kind)
        if is_section(kind):
            value = from_plain(kind, value)
        elif is_section(element):
            value = [from_plain(element, item) for item in value]
        elif kind is float or (isinstance(kind, types.UnionType) and float in typing.get_args(kind)):
            value = None if value is None else float(value)
        built[name] = value
    return section(**built)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted path to value; a list is one value."""
    if isinstance(value, dict) and (value or not prefix):
        merged: dict[str, Any] = {}
        for key, inner in value.items():
            merged.update(flat(inner, f"{prefix}.{key}" if prefix else key))
        return merged
    return {prefix: value}


def identity_values(section: Any) -> dict[str, Any]:
    """The settings of a section that bear identity, as plain JSON values."""
    kept: dict[str, Any] = {}
    for declared in dataclasses.fields(section):
        if not declared.metadata.get("identity", True):
            continue
        kept[declared.name] = _plain(getattr(section, declared.name))
    return kept


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return identity_values(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
