"""Settings laid over each other one leaf at a time, with a memory of who set what.

OmegaConf's structured config holds the values and checks their types; this adds what
OmegaConf does not know: the file and line that a value came from, and the nearest right
name for a wrong one.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import schema
from pipeline.errors import UserError


@dataclass(frozen=True)
class Origin:
    """Who set a value: the layer, and the file and line where there is one."""

    layer: str
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        if self.file is None:
            return self.layer
        return f"{self.file}:{self.line}" if self.line else self.file


class Layers:
    """A recipe's settings while layer after layer is laid over the defaults.

    ``history`` maps a dotted path to the (origin, value) pairs of the layers that set it,
    oldest first.
    """

    def __init__(self) -> None:
        self.config: DictConfig = OmegaConf.structured(schema.Recipe)
        self.history: dict[str, list[tuple[Origin, Any]]] = {}

    def lay(self, values: dict[str, Any], prefix: str, origin_of: Callable[[str], Origin]) -> None:
        """Lay a mapping over the section at ``prefix``; ``origin_of`` knows each path's origin.

        Raises :class:`UserError` for an unknown key or a value of the wrong type.
        """
        for name, value in values.items():
            path = f"{prefix}.{name}" if prefix else str(name)
            annotation, _ = locate(path, origin_of(path))
            if schema.is_open(annotation) and isinstance(value, dict):
                self._lay_open(path, value, origin_of)
            elif not schema.is_section(annotation):
                self._set(path, annotation, value, origin_of)
            elif isinstance(value, dict):
                self.lay(value, path, origin_of)
            else:
                example = f"{path}.{next(iter(schema.hints(annotation)))}"
                raise UserError(
                    f"{origin_of(path)}: {path}: is a section, found {value!r}; set one of its keys, e.g. {example}"
                )

    def _lay_open(self, path: str, values: dict[str, Any], origin_of: Callable[[str], Origin]) -> None:
        """Lay a mapping over an open one (``curate.filters``): key by key, nothing is lost."""
        for name, value in values.items():
            inner = f"{path}.{name}"
            if isinstance(value, dict) and value:
                self._lay_open(inner, value, origin_of)
                continue
            for stale in [key for key in self.history if key.startswith(f"{inner}.")]:
                del self.history[stale]
            OmegaConf.update(self.config, inner, value, merge=False, force_add=True)
            self.history.setdefault(inner, []).append((origin_of(inner), value))

    def lay_path(self, path: str, value: Any, origin: Origin) -> None:
        """Lay one value at a dotted path, as the command line gives it."""
        parent, _, name = path.rpartition(".")
        if parent:
            locate(parent, origin)
        self.lay({name: value}, parent, lambda _: origin)

    def _set(self, path: str, annotation: Any, value: Any, origin_of: Callable[[str], Origin]) -> None:
        element = schema.item_type(annotation)
        # A list is replaced whole, so what earlier layers said of its items no longer holds.
        for stale in [key for key in self.history if key.startswith(f"{path}.")]:
            del self.history[stale]
        laid = self._items(path, element, value, origin_of) if schema.is_section(element) else value
        self._update(self.config, path, path, laid, origin_of(path))
        self.history.setdefault(path, []).append((origin_of(path), value))

    def _items(
        self, path: str, element: Any, value: Any, origin_of: Callable[[str], Origin]
    ) -> list[DictConfig]:
        if not isinstance(value, list):
            raise UserError(
                f"{origin_of(path)}: {path}: expected a list of {element.__name__.lower()}s, found {value!r}"
            )
        items = []
        for index, plain in enumerate(value):
            place = f"{path}.{index}"
            if not isinstance(plain, dict):
                raise UserError(
                    f"{origin_of(place)}: {place}: expected SETTING: VALUE lines, found {plain!r}"
                )
            item = OmegaConf.structured(element)
            for name, inner in plain.items():
                origin = origin_of(f"{place}.{name}")
                locate(f"{place}.{name}", origin)
                self._update(item, str(name), f"{place}.{name}", inner, origin)
                self.history[f"{place}.{name}"] = [(origin, inner)]
            items.append(item)
        return items

    def _update(self, config: DictConfig, key: str, path: str, value: Any, origin: Origin) -> None:
        try:
            OmegaConf.update(config, key, value, merge=False)
        except OmegaConfBaseException:
            annotation, metadata = locate(path, origin)
            raise UserError(
                f"{origin}: {path}: expected {_in_words(annotation)} ({metadata['help']}), found {value!r}"
            ) from None


def locate(path: str, origin: Origin) -> tuple[Any, Any]:
    """Type and metadata of the setting at a dotted path; :class:`UserError` for a wrong name."""
    annotation: Any = schema.Recipe
    metadata: Any = {}
    for part in path.split("."):
        element = schema.item_type(annotation)
        if part.isdigit() and element is not None:
            annotation = element
            continue
        if schema.is_open(annotation):
            return Any, metadata
        if not schema.is_section(annotation) or part not in schema.hints(annotation):
            _unknown_key(path, part, annotation, origin)
        metadata = next(f.metadata for f in dataclasses.fields(annotation) if f.name == part)
        annotation = schema.hints(annotation)[part]
    return annotation, metadata


def leaves(section: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Every setting of a section as (dotted path, value, metadata), in order."""
    found: list[tuple[str, Any, Any]] = []
    for declared in dataclasses.fields(section):
        path = f"{prefix}{declared.name}"
        value = getattr(section, declared.name)
        if dataclasses.is_dataclass(value):
            found += leaves(value, f"{path}.")
        elif isinstance(value, list) and value and dataclasses.is_dataclass(value[0]):
            for index, item in enumerate(value):
                found += leaves(item, f"{path}.{index}.")
        elif isinstance(value, dict) and value:
            found += [(inner, each, declared.metadata) for inner, each in schema.flat(value, path).items()]
        else:
            found.append((path, value, declared.metadata))
    return found


def suggest(word: str, known: list[str]) -> str:
    """``; did you mean 'lr'?`` where one of the known words is near, else nothing."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _unknown_key(path: str, part: str, section: Any, origin: Origin) -> NoReturn:
    known = list(schema.hints(section)) if schema.is_section(section) else []
    near = suggest(part, known)
    elsewhere = (
        ""
        if near
        else " and ".join([p for p, _, _ in leaves(schema.Recipe()) if p.split(".")[-1] == part][:3])
    )
    choices = f"; the keys here are: {', '.join(known)}" if known else ""
    raise UserError(
        f"{origin}: {path}: unknown key {part!r}{near}{f' (there is {elsewhere})' if elsewhere else ''}{choices}"
    )


def _in_words(annotation: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        list[str]: "a list of words",
        str | None: "text or null",
        float | None: "a number or null",
    }
    return words.get(annotation, str(annotation))
