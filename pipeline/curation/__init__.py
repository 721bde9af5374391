"""What a recipe may say about curation: the stages, their order, and Curator's own classes.

``curate.stages`` lists names in the order in which documents pass them.  A name is one of

* :data:`OWN_STAGES`, which have a settings section of their own (``curate.language``, ...);
* a filter, modifier or classifier of NeMo Curator by its class name, its parameters under
  ``curate.filters``, ``curate.modifiers`` or ``curate.classifiers``;
* ``filters``: all filters of ``curate.filters`` that the list does not name by themselves,
  in alphabetical order (the order of filters never changes what is kept, only which filter
  is named as the reason).

A class that is wanted more than once gets a label after a slash:
``RepeatingTopNGramsFilter/3: {n: 3, max_repeating_ngram_ratio: 0.18}``.

Which classes and parameters Curator has stands in ``catalogue.json``, taken from the
installed Curator by :mod:`pipeline.stages.curate.catalogue` (a test holds the two
together): a wrong name is refused before anything starts, and without importing Curator.
Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pipeline import schema

OWN_STAGES = {
    "language": "identify the language; keep, drop or route by it",
    "filters": "the filters of curate.filters that are not listed by themselves",
    "redact": "replace, hash or drop personal data and secrets",
    "decontaminate": "take evaluation data out by n-gram overlap",
    "exact-duplicates": "drop documents of equal text",
    "near-duplicates": "drop documents that are alike (MinHash)",
    "semantic-duplicates": "drop documents that mean the same (embeddings)",
}
# These look at all documents at once; everything before them must be finished first.
WHOLE_CORPUS = ("exact-duplicates", "near-duplicates", "semantic-duplicates")
# Section of a catalogue kind in the schema.
SECTIONS = {"filter": "filters", "modifier": "modifiers", "classifier": "classifiers"}
# Parameters of Curator's classes that name a file or folder.
PATHS = {
    ("FastTextLangId", "model_path"),
    ("FastTextQualityFilter", "model_path"),
    ("TokenizerFertilityFilter", "path_to_tokenizer"),
    ("TokenCountFilter", "hf_model_name"),
    ("HistogramFilter", "cache_dir"),
    ("PerExtensionFilter", "metadata_file"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "list": (list,),
}


@cache
def catalogue() -> dict[str, dict[str, Any]]:
    """Curator's classes by name: ``kind``, ``module``, ``summary`` and ``parameters``.

    A parameter has ``types`` (names of :data:`TYPES`; empty: anything), ``null`` (whether it
    may be null), ``default`` and ``required``.
    """
    text = (Path(__file__).parent / "catalogue.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def stage_order(curate: schema.Curate) -> list[str]:
    """The stages in order, with ``filters`` written out as the filters that it stands for."""
    listed = set(curate.stages)
    order: list[str] = []
    for name in curate.stages:
        if name == "filters":
            order += [f for f in sorted(curate.filters) if curate.filters[f] is not None and f not in listed]
        else:
            order.append(name)
    return order


def class_of(name: str) -> str:
    """The class of a stage name, without its label."""
    return name.partition("/")[0]


def entry_of(name: str) -> dict[str, Any] | None:
    """The catalogue's entry of a stage name, None for a stage of our own."""
    return catalogue().get(class_of(name))


def parameters(curate: schema.Curate, name: str) -> dict[str, Any]:
    """The parameters that the recipe gives a class of Curator."""
    section = SECTIONS[catalogue()[class_of(name)]["kind"]]
    return dict(getattr(curate, section).get(name) or {})


def path_settings(curate: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Every setting of the plain section ``curate`` that names a file or folder, but the sources'.

    As (dotted name, the mapping or list that holds it, its key), so that a caller can read
    it, make it absolute, or take it out.
    """
    for name in ("instructions", "preferences"):
        yield name, curate, name
    yield "scored.path", curate["scored"], "path"
    for section in ("language", "semantic_duplicates"):
        yield f"{section}.model", curate[section], "model"
    sets = curate["decontaminate"]["sets"]
    for index in range(len(sets)):
        yield f"decontaminate.sets.{index}", sets, index
    for section in ("filters", "modifiers"):
        for name, given in curate[section].items():
            for parameter in given or {}:
                if (class_of(name), parameter) in PATHS:
                    yield f"{section}.{name}.{parameter}", given, parameter


def faults(curate: schema.Curate) -> Iterator[tuple[str, str]]:
    """What is wrong with the stages, as (setting, message)."""
    known = {*OWN_STAGES, *catalogue()}
    for index, name in enumerate(curate.stages):
        if class_of(name) not in known:
            yield f"curate.stages.{index}", _unknown(name, known, "stage")
        elif class_of(name) in OWN_STAGES and name != class_of(name):
            yield f"curate.stages.{index}", f"{class_of(name)} has no label: it can be listed once only"
        elif _taken_out(curate, name):
            yield (
                f"curate.stages.{index}",
                f"{name} is listed, and taken out by a null of its parameters: which is it?",
            )
        elif curate.stages.index(name) != index:
            yield f"curate.stages.{index}", f"{name!r} is listed twice"
    for kind, section in SECTIONS.items():
        classes = {name for name, entry in catalogue().items() if entry["kind"] == kind}
        for name, given in getattr(curate, section).items():
            path = f"curate.{section}.{name}"
            if class_of(name) not in classes:
                yield path, _unknown(name, classes, kind)
            elif given is not None and not isinstance(given, dict):
                yield path, f"expected PARAMETER: VALUE lines or null, found {given!r}"
            else:
                yield from _parameter_faults(path, catalogue()[class_of(name)], given)
    for name in stage_order(curate):
        entry = entry_of(name)
        if entry:
            missing = [
                p for p, about in entry["parameters"].items()
                if about["required"] and p not in parameters(curate, name)
            ]  # fmt: skip
            if missing:
                section = SECTIONS[entry["kind"]]
                yield (
                    f"curate.{section}.{name}",
                    f"needs {', '.join(missing)}: curate.{section}.{name}.{missing[0]}=...",
                )


def _taken_out(curate: schema.Curate, name: str) -> bool:
    entry = entry_of(name)
    return entry is not None and getattr(curate, SECTIONS[entry["kind"]]).get(name, {}) is None


def _parameter_faults(
    path: str, entry: dict[str, Any], given: dict[str, Any] | None
) -> Iterator[tuple[str, str]]:
    for parameter, value in (given or {}).items():
        about = entry["parameters"].get(parameter)
        if about is None:
            yield f"{path}.{parameter}", _unknown(parameter, set(entry["parameters"]), "parameter")
        elif value is None:
            if not about["null"]:
                yield f"{path}.{parameter}", "cannot be null"
        elif about["types"] and not _fits(value, about["types"]):
            yield f"{path}.{parameter}", f"expected {' or '.join(about['types'])}, found {value!r}"


def _fits(value: Any, types: list[str]) -> bool:
    if isinstance(value, bool):
        return "bool" in types
    return any(isinstance(value, TYPES[name]) for name in types if name != "bool")


def _unknown(name: str, known: set[str], what: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, sorted(known), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"there is no {what} {name!r}{hint}; there are: {', '.join(sorted(known)) or 'none'}"
