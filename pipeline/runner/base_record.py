"""What a base model is, for the record: its name, licence, parameters and shape, as its own folder says.

How it is told is in :mod:`pipeline.record.bases`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pipeline import base_files, schema
from pipeline.errors import UserError
from pipeline.positions import bounded
from pipeline.runner.base import folder, is_hub_id

FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*\n", re.DOTALL)  # a model card's metadata
LICENCES = re.compile(r"(?:un)?licen[cs]e|copying", re.IGNORECASE)  # how the names of such files begin
SOME = 200_000  # bytes of a card or licence that are looked at


def describe(model: schema.Model) -> dict[str, Any] | None:
    """The base as plain values; None where there is none, or it is not on this machine."""
    from pipeline.plan.shapes import of_recipe

    base = None if model.base is None else folder(model)
    if base is None or not base.is_dir():
        return None
    try:
        shape = of_recipe(model)
    except UserError:  # told where the base is checked
        return None
    assert model.base is not None
    card = _card(base)
    return {
        "name": model.base if is_hub_id(model.base) else base.resolve().name,
        "hub": is_hub_id(model.base),
        "revision": base.name if is_hub_id(model.base) else None,
        "licence": _licence(card, base),
        "parameters": shape.parameters,
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.feed_forward,
        "layers": shape.depth,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "context": shape.context,
    }


def _card(base: Path) -> dict[str, Any]:
    """The metadata of the base's own model card; empty where there is none that can be read."""
    try:
        found = FRONT.match(_begin(base / "README.md").replace("\r\n", "\n"))
        said = yaml.safe_load(bounded(found[1])) if found else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return said if isinstance(said, dict) else {}


def _licence(card: dict[str, Any], base: Path) -> str | None:
    """The licence's name: the card's, or the first line of a licence's text."""
    named = card.get("license")
    if named == "other":
        named = card.get("license_name") or named
    several = named if isinstance(named, list) else [named]  # the hub takes a list, too
    names = [_plain(each) for each in several if isinstance(each, str) and _plain(each)]
    if names:
        return ", ".join(names)[:100]
    for path in sorted(each for each in base.iterdir() if LICENCES.match(each.name)):
        lines = (_plain(line).strip("# ") for line in _begin(path).splitlines())
        first = next((line for line in lines if line), None)
        if first:
            return first[:100]
    return None


def _begin(file: Path) -> str:
    """The first :data:`SOME` bytes of a file of the base's own, as text; empty where there is none to read.

    A link may lead to any file of this user's (a token, a pipe that never ends), and what is read is published.
    """
    try:
        if not file.is_file() or base_files.leads_out(file):
            return ""
        with open(file, "rb") as handle:
            return handle.read(SOME).decode("utf-8-sig", "replace")
    except OSError:
        return ""


def _plain(text: str) -> str:
    """A line of others as words of a card: without control characters, and without what Markdown takes for HTML."""
    return " ".join(
        re.sub(r"[<>`|]", " ", "".join(sign if sign.isprintable() else " " for sign in text)).split()
    )
