"""A recipe file from settings: whatever differs from the defaults, with a header that says what it is for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline import schema

if TYPE_CHECKING:
    from pipeline.plan.scaling.sweep import Point

SECTIONS = ("description", "stages", "curate", "model", "pretrain", "launch", "tracking")


def write(file: Path, settings: schema.Recipe, base: str, point: Point) -> None:
    """Write the recipe of one point of a sweep over ``base``."""
    purpose = (
        "Held out of every fit: what the law predicts is compared with this run." if point.held_out else ""
    )
    epochs = "" if point.epochs is None else f", {point.epochs:.2f} passes over the data"
    header = [
        f"# One run of an IsoFLOP sweep over {base}: {point.parameters:,} parameters, {point.tokens:,} tokens{epochs}.",
        "#",
        f"#   lifecycle pretrain {file}",
        "#",
        *([f"# {purpose}"] if purpose else []),
        f"# Budget {point.budget:.3g} FLOP = 6 x parameters x tokens. Written by `lifecycle scale sweep`; not executed by it.",
    ]
    body = yaml.safe_dump(plain(settings), sort_keys=False, default_flow_style=False, allow_unicode=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(header) + "\n" + body, encoding="utf-8")


def plain(settings: schema.Recipe) -> dict[str, Any]:
    """The sections of a recipe that pre-training rests on, without what the defaults say already."""
    kept = _differing(settings)
    return {name: kept[name] for name in SECTIONS if name in kept}


def _differing(section: Any) -> dict[str, Any]:
    usual = type(section)()
    found = {}
    for field in dataclasses.fields(section):
        value = getattr(section, field.name)
        if value != getattr(usual, field.name):
            found[field.name] = _value(value)
    return found


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return _differing(value)
    if isinstance(value, list):
        return [_value(item) for item in value]
    return value
