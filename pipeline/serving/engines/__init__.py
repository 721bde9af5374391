"""What the GPU engines' constructors take: names and types of one released version each, as data.

A catalogue (JSON beside this file) holds what the release's own sources say, so that an argument that the engine
would refuse an hour later in its container is refused when the recipe is read.  :func:`faults` checks values
against it; types that JSON cannot carry (objects, callables) accept nothing.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

TENSORRT_LLM, VLLM = "tensorrt_llm-1.2.1", "vllm-0.24.0"
SCALARS: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "Path": (str,),
    "dict": (dict,),
    "None": (type(None),),
}


@functools.cache
def catalogue(name: str) -> dict[str, Any]:
    """One engine's catalogue: ``classes`` (field to type by class), ``enums`` and what else it says."""
    content: dict[str, Any] = json.loads(
        (Path(__file__).with_name(f"{name}.json")).read_text(encoding="utf-8")
    )
    return content


def faults(name: str, section: str, values: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the class ``section`` of an engine would refuse of these arguments: (dotted path, why)."""
    known = catalogue(name)
    fields = known["classes"][section]
    for key, value in values.items():
        if key not in fields:
            near = get_close_matches(key, fields, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield key, f"{known['engine']} {known['version']} has no {key!r} in {section}{hint}"
        elif key == "speculative_config" and isinstance(value, dict):
            yield from ((f"{key}.{path}", why) for path, why in _speculative(name, value))
        else:
            yield from _value(name, key, value, fields[key])


def _value(name: str, path: str, value: Any, kind: str) -> Iterator[tuple[str, str]]:
    known = catalogue(name)
    for option in options(kind):
        if option in known["classes"] and isinstance(value, dict):
            yield from ((f"{path}.{inner}", why) for inner, why in faults(name, option, value))
            return
        if _fits(known, value, option):
            return
    yield path, f"{value!r} is no {kind}"


def _speculative(name: str, value: dict[str, Any]) -> Iterator[tuple[str, str]]:
    kinds = catalogue(name).get("speculative")
    if kinds is None:
        return
    chosen = str(value.get("decoding_type"))
    if chosen not in kinds:
        yield "decoding_type", f"{chosen!r} is not one of: {', '.join(kinds)}"
        return
    rest = {key: inner for key, inner in value.items() if key != "decoding_type"}
    yield from faults(name, kinds[chosen], rest)
    for key in REQUIRED.get(chosen, ()):
        if not value.get(key):
            yield key, f"decoding_type {chosen} needs it"


REQUIRED = {
    "Eagle": ("max_draft_len", "speculative_model"),
    "DraftTarget": ("max_draft_len", "speculative_model"),
    "NGram": ("max_draft_len", "max_matching_ngram_size"),
    "MTP": ("num_nextn_predict_layers",),
}


def options(kind: str) -> list[str]:
    """The alternatives of a type: of ``Optional[X]``, ``Union[X, Y]`` and ``X | Y``."""
    kind = kind.strip().strip("'")
    for wrapper, extra in (("Optional", ["None"]), ("Union", [])):
        if kind.startswith(f"{wrapper}[") and kind.endswith("]"):
            return [
                inner for part in _split(kind[len(wrapper) + 1 : -1], ",") for inner in options(part)
            ] + extra
    parts = _split(kind, "|")
    return [kind] if len(parts) == 1 else [inner for part in parts for inner in options(part)]


def _split(text: str, mark: str) -> list[str]:
    """At ``mark`` outside brackets and quotation marks."""
    parts, depth, quoted, start = [], 0, "", 0
    for place, sign in enumerate(text):
        if quoted:
            quoted = "" if sign == quoted else quoted
        elif sign in "'\"":
            quoted = sign
        elif sign in "[(":
            depth += 1
        elif sign in "])":
            depth -= 1
        elif sign == mark and not depth:
            parts.append(text[start:place])
            start = place + 1
    return [part.strip() for part in [*parts, text[start:]]]


def _fits(known: dict[str, Any], value: Any, kind: str) -> bool:
    if kind in SCALARS:
        # A bool is an int to Python and not to these engines.
        return isinstance(value, SCALARS[kind]) and (kind == "bool" or not isinstance(value, bool))
    named = known["enums"].get(kind)
    if isinstance(named, str):  # the name of a type, or values in a list
        return any(_fits(known, value, option) for option in options(named))
    if named is not None:
        return value in named
    if kind.endswith(("Config", "ConfigArgs")):  # built from a mapping whose keys are not listed here
        return isinstance(value, dict) or (value is None and kind == "SpeculativeConfig")
    if found := re.fullmatch(r"Literal\[(.*)\]", kind):
        return str(value) in [part.strip("'\"") for part in _split(found[1], ",")]
    if found := re.fullmatch(r"(?:[Ll]ist|[Ss]et)\[(.*)\]", kind):
        return isinstance(value, list) and all(
            any(_fits(known, item, option) for option in options(found[1])) for item in value
        )
    if found := re.fullmatch(r"[Dd]ict\[(.*)\]", kind):
        return isinstance(value, dict)
    return False
