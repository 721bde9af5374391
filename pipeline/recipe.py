"""Recipes: load, compose, override and validate settings, and remember who set what.

A recipe is YAML in ``recipes/``.  Settings come in layers, later ones winning::

    default         pipeline/schema/
    configs file    configs/SECTION/NAME.yaml, named in the recipe under ``use:``
    recipe file     recipes/NAME.yaml
    site file       configs/sites/NAME.yaml (section ``site`` only)
    command line    SET="train.lr=1e-4 align.beta=0.2"

Nothing starts before the whole recipe is valid; what is wrong is reported with the file
and line that set it.
"""

from __future__ import annotations

import math
import operator
import os
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import inert, schema, secret_text
from pipeline.checks import cross_checks
from pipeline.curation import idle
from pipeline.errors import UserError
from pipeline.layers import Layers, Origin, leaves, locate, suggest
from pipeline.positions import TooMuch, bounded, in_words, key_lines, text_of
from pipeline.recipe_names import LONGEST_NAME, NAME

# The first key of what a submission wrote down (:mod:`pipeline.launch.submit`): every setting as it was, asked for or not.
SUBMITTED = "submitted"
LARGEST = 1e18  # what reckons with a setting multiplies a few of them, and floats end at 1e308
BOUNDS = {"ge": (operator.ge, "at least"), "gt": (operator.gt, "more than"), "le": (operator.le, "at most")}


@dataclass
class LoadedRecipe:
    """A validated recipe and, for every setting, the layers that set it (oldest first)."""

    name: str
    settings: schema.Recipe
    history: dict[str, list[tuple[Origin, Any]]] = field(default_factory=dict)
    file: Path | None = None

    def origin(self, path: str) -> Origin:
        """Who set the value of a setting; its nearest set ancestor, else the default."""
        parts = path.split(".")
        for end in range(len(parts), 0, -1):
            layers = self.history.get(".".join(parts[:end]))
            if layers:
                return layers[-1][0]
        return Origin("default")

    def ranks(self) -> dict[str, int]:
        """For every setting that was set, how strong the layer is that set it last."""
        return {path: inert.RANKS[layers[-1][0].layer] for path, layers in self.history.items()}


def recipe_names(root: Path) -> list[str]:
    """The names of the recipes at hand."""
    return sorted(path.stem for path in (root / "recipes").glob("*.yaml"))


def load(name: str, root: Path, overrides: str = "", site: str = "local") -> LoadedRecipe:
    """Load ``recipes/NAME.yaml`` (or a path to a YAML file) with its layers.

    ``overrides`` is the text of ``SET``; ``site`` a name in ``configs/sites/``, or a path to a
    YAML file.  Raises :class:`UserError` with file, line, what
    was expected and the nearest key for anything that is wrong.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else root / "recipes" / f"{name}.yaml"
    if not path.is_file():
        known = recipe_names(root)
        raise UserError(
            f"there is no recipe {name!r}{suggest(name, known)}; the recipes are: {', '.join(known)}"
        )
    check_name(path.stem)
    layers = Layers()
    shown = _shown(path, root)
    values, lines = _read(path, shown)
    _lay_uses(layers, values.pop("use", None), lines, shown, root)
    layer = "submission" if values.pop(SUBMITTED, None) is True else "recipe file"
    layers.lay(values, "", lambda key: Origin(layer, shown, lines.get(key)))
    _lay_file(layers, _site_file(root, site), root, "site file", "site")
    for key, value in _parse_overrides(overrides):
        layers.lay_path(key, value, Origin("SET"))
    return _validated(path, layers)


def check_name(name: str) -> None:
    """Raise :class:`UserError` for a recipe's name that cannot be the name of its folder of runs."""
    if not NAME.fullmatch(name) or len(os.fsencode(name)) > LONGEST_NAME:
        raise UserError(
            f"a recipe cannot be called {name!r}: its artifacts are kept under that name; begin with a letter or digit, go on with "
            f"letters, digits, spaces and any of . _ - + , @ = ~ ( ), up to {LONGEST_NAME} bytes, and rename the file"
        )


def _validated(path: Path, layers: Layers) -> LoadedRecipe:
    loaded = LoadedRecipe(path.stem, schema.Recipe(), layers.history, path)
    try:
        settings = OmegaConf.to_object(layers.config)
    except OmegaConfBaseException as error:
        key = error.full_key or ""
        raise UserError(f"{loaded.origin(key)}: {key}: {_first_line(error)}") from None
    assert isinstance(settings, schema.Recipe)
    loaded.settings = settings
    for key, message in secret_text.faults(asdict(settings), resolved=True):
        raise UserError(f"{loaded.origin(key)}: {key}: {message}")
    for key, value, metadata in leaves(settings):
        fault = range_fault(value, metadata)
        if fault:
            raise UserError(f"{loaded.origin(key)}: {key}: {fault}")
    settings.export.settle(settings.launch.gpus)
    idle.take_out(settings.curate, loaded.ranks())
    for key, message in cross_checks(settings):
        raise UserError(f"{loaded.origin(key)}: {key}: {message}")
    for setting, because, why in inert.idle(settings):
        for key in inert.given(layers.history, setting, because):
            raise UserError(f"{loaded.origin(key)}: {key}: would change nothing: it {why}")
    for key, message in idle.faults(settings.curate, loaded.ranks()):
        raise UserError(f"{loaded.origin(key)}: {key}: {message}")
    return loaded


def range_fault(value: Any, metadata: Any) -> str | None:
    """Why a value is outside what its setting accepts, or None."""
    choices = metadata.get("choices")
    if choices and value is not None and value not in choices:
        return f"{value!r} is not one of: {', '.join(choices)}{suggest(str(value), list(choices))}"
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is not a finite number"
    if abs(value) > LARGEST:
        return f"is beyond all use; the largest number of any setting is {LARGEST:.0e}"
    for bound, (holds, words) in BOUNDS.items():
        limit = metadata.get(bound)
        if limit is not None and not holds(value, limit):
            return f"{value} is out of range; it must be {words} {limit} ({metadata['help']})"
    return None


# ------------------------------------------------------------------------------- files


def _read(path: Path, shown: str) -> tuple[dict[str, Any], dict[str, int]]:
    try:
        text = text_of(path)
        lines = key_lines(text)
        plain = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if lines else {}
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(in_words(error, shown)) from None
    if not isinstance(plain, dict):
        raise UserError(f"{shown}:1: expected SETTING: VALUE lines, found a list")
    for key, message in secret_text.faults(plain):
        raise UserError(f"{Origin('', shown, lines.get(key))}: {key}: {message}")
    return {str(key): value for key, value in plain.items()}, lines


def _lay_uses(layers: Layers, uses: Any, lines: dict[str, int], shown: str, root: Path) -> None:
    if uses is None:
        return
    if not isinstance(uses, dict):
        raise UserError(f"{shown}:{lines['use']}: use: expected SECTION: NAME lines, e.g. model: tiny")
    for section, choice in uses.items():
        origin = Origin("recipe file", shown, lines[f"use.{section}"])
        annotation, _ = locate(str(section), origin)
        if not schema.is_section(annotation):
            raise UserError(f"{origin}: use.{section}: is a single setting, not a section")
        fault = f"{origin}: use.{section}: there is no configs/{section}/{choice}.yaml"
        _lay_file(layers, _choose(root, str(section), str(choice), fault), root, "configs file", str(section))


def _site_file(root: Path, site: str) -> Path:
    if not site.endswith((".yaml", ".yml")):
        return _choose(root, "sites", site, f"there is no site {site!r}")
    if not Path(site).is_file():
        raise UserError(f"there is no site file {site}")
    return Path(site)


def _choose(root: Path, folder: str, choice: str, fault: str) -> Path:
    file = root / "configs" / folder / f"{choice}.yaml"
    if not file.is_file():
        known = sorted(path.stem for path in (root / "configs" / folder).glob("*.yaml"))
        raise UserError(f"{fault}{suggest(choice, known)}; there are: {', '.join(known) or 'none'}")
    return file


def _lay_file(layers: Layers, file: Path, root: Path, layer: str, prefix: str) -> None:
    shown = _shown(file, root)
    values, lines = _read(file, shown)
    start = len(prefix) + 1
    layers.lay(values, prefix, lambda key: Origin(layer, shown, lines.get(key[start:])))


def _parse_overrides(text: str) -> list[tuple[str, Any]]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f"SET: {error}: {secret_text.redacted(text)}") from None
    pairs = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(
                f'SET: expected KEY=VALUE, found {secret_text.redacted(word)!r}; e.g. SET="train.lr=1e-4 align.beta=0.2"'
            )
        try:
            written = bounded(f"v: {value or 'null'}")
            parsed = OmegaConf.to_container(OmegaConf.create(written), resolve=False)
        except TooMuch as error:
            raise UserError(f"SET: {key}: {error.problem}") from None
        except (ValueError, yaml.YAMLError, OmegaConfBaseException):
            raise UserError(f"SET: {key}: this value is not YAML: {secret_text.redacted(value)!r}") from None
        if not isinstance(parsed, dict) or parsed.keys() != {"v"}:
            raise UserError(f"SET: {key}: a value is one line of YAML, found {secret_text.redacted(value)!r}")
        for place, message in secret_text.faults({key: parsed["v"]}):
            raise UserError(f"SET: {place}: {message}")
        pairs.append((key, parsed["v"]))
    return pairs


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _shown(path: Path, root: Path) -> str:
    try:
        return str(path.resolve().relative_to(root.resolve()))
    except ValueError:
        return str(path)
