"""The catalogue of Curator's filters, modifiers and classifiers, taken from the installed one.

    python -m pipeline.stages.curate.catalogue > pipeline/curation/catalogue.json

The controller checks recipes against the file without importing Curator; a test compares
the file with what is installed.
"""

from __future__ import annotations

import inspect
import sys
import types
import typing
from importlib import import_module
from typing import Any, cast

from pipeline import strict_json
from pipeline.curation import catalogue

TEXT = "nemo_curator.stages.text"
MODULES = {
    "filter": (
        f"{TEXT}.filters.heuristic.string",
        f"{TEXT}.filters.heuristic.repetition.repetition",
        f"{TEXT}.filters.heuristic.code.code",
        f"{TEXT}.filters.token.token_count",
        f"{TEXT}.filters.histogram.histogram",
        f"{TEXT}.filters.fasttext.fasttext_filters",
    ),
    "modifier": (
        f"{TEXT}.modifiers.string",
        f"{TEXT}.modifiers.unicode",
    ),
    "classifier": (f"{TEXT}.classifiers",),
}
# Given by the pipeline, objects that a recipe cannot hold, or never to be written in one.
NOT_IN_RECIPES = {
    "tokenizer",
    "hf_token",
    "config",
    "transformers_init_kwargs",
    "cache_dir",
    "use_existing_tokens",
}
KEPT_ANYWAY = {("HistogramFilter", "cache_dir"), ("HistogramFilter", "threshold")}
WORDS = {bool: "bool", int: "int", float: "float", str: "str", list: "list"}


def classes() -> dict[str, tuple[str, type]]:
    """Curator's classes by name, each with its kind."""
    from nemo_curator.stages.text.filters.doc_filter import DocumentFilter
    from nemo_curator.stages.text.modifiers.doc_modifier import DocumentModifier

    bases = {"filter": DocumentFilter, "modifier": DocumentModifier}
    found: dict[str, tuple[str, type]] = {}
    for kind, modules in MODULES.items():
        for path in modules:
            module = import_module(path)
            for name in getattr(module, "__all__", None) or vars(module):
                value = getattr(module, name)
                base = bases.get(kind)
                if inspect.isclass(value) and (
                    base is None or (issubclass(value, base) and value is not base)
                ):
                    found[name] = (kind, value)
    return found


def describe() -> dict[str, dict[str, Any]]:
    """The catalogue: see :func:`pipeline.curation.catalogue`."""
    return {name: _entry(name, kind, cls) for name, (kind, cls) in sorted(classes().items())}


def _entry(name: str, kind: str, cls: type) -> dict[str, Any]:
    parameters = {}
    for parameter in list(inspect.signature(vars(cls).get("__init__", cls)).parameters.values()):
        if parameter.name == "self" or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name in NOT_IN_RECIPES and (name, parameter.name) not in KEPT_ANYWAY:
            continue
        parameters[parameter.name] = _parameter(name, parameter)
    # The first sentence of the docstring; not all classes have one.
    about = " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())
    return {"kind": kind, "module": cls.__module__, "summary": about, "parameters": parameters}


def load(name: str) -> type:
    """Curator's class of this name; imports its module and no other."""
    return cast(type, getattr(import_module(catalogue()[name]["module"]), name))


# Curator's defaults of these say "nothing", and its constructor then refuses.
REQUIRED = {
    ("TokenizerFertilityFilter", "path_to_tokenizer"),
    ("TokenCountFilter", "hf_model_name"),
    ("FastTextLangId", "model_path"),
    ("FastTextQualityFilter", "model_path"),
    ("HistogramFilter", "cache_dir"),
}


def _parameter(owner: str, parameter: inspect.Parameter) -> dict[str, Any]:
    kinds = _types(parameter.annotation)
    default = None if parameter.default is parameter.empty else parameter.default
    if isinstance(default, float) and default == float("inf"):
        default = None
    return {
        "types": [WORDS[k] for k in (bool, int, float, str, list) if k in kinds],
        "null": type(None) in kinds,
        "default": default if isinstance(default, bool | int | float | str | list | None) else str(default),
        "required": parameter.default is parameter.empty or (owner, parameter.name) in REQUIRED,
    }


def _types(annotation: Any) -> set[Any]:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return set().union(*(_types(inner) for inner in typing.get_args(annotation)))
    if origin is typing.Literal:
        return {str}
    if origin is list or annotation is list:
        return {list}
    if annotation in (bool, int, float, str, type(None)):
        # Thresholds that Curator types as int take fractions just as well.
        return {int, float} if annotation in (int, float) else {annotation}
    return set()


if __name__ == "__main__":
    sys.stdout.write(strict_json.dumps(describe(), indent=1, sort_keys=True))
    sys.stdout.write("\n")
