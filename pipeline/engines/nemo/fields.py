"""Setting fields of NeMo's recipes so that a name the package does not know is never passed over.

A recipe is a tree of NeMo-Run configurations (fiddle), each for one class of the package.  Fiddle
refuses an unknown field, except where the constructor takes ``**kwargs``: there a typing error
would be swallowed, or fail hours later on the cluster.  So each name is looked up in the
constructors of the class and of its bases.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from importlib.metadata import version
from typing import Any

from pipeline.stages.step import InputError


def assign_all(recipe: Any, values: Iterable[tuple[str, Any]]) -> None:
    """Set several fields, given as (dotted path, value), in order."""
    for path, value in values:
        assign(recipe, path, value)


def assign(recipe: Any, path: str, value: Any) -> None:
    """Set one field of a recipe by its dotted path, e.g. ``trainer.strategy.context_parallel_size``.

    Raises :class:`InputError` when the class at that place has no such field.
    """
    *parents, name = path.split(".")
    holder = recipe
    for depth, parent in enumerate(parents):
        holder = getattr(holder, parent, None)
        if not hasattr(holder, "__fn_or_cls__"):
            raise InputError(
                f"{_toolkit()}: the recipe has nothing to configure at {'.'.join(parents[: depth + 1])}"
            )
    known = fields_of(holder.__fn_or_cls__)
    if name not in known:
        near = get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"{_toolkit()}: {holder.__fn_or_cls__.__name__} has no field {name!r} (for {path}){hint}"
        )
    setattr(holder, name, value)


def fields_of(target: Any) -> set[str]:
    """The names that a class or function takes, where it takes ``**kwargs`` those of its bases too."""
    signature = inspect.signature(target)
    found = _named(signature)
    if isinstance(target, type) and any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for base in target.__mro__[1:-1]:
            if "__init__" in vars(base):
                found |= _named(inspect.signature(base))
    return found


def _named(signature: inspect.Signature) -> set[str]:
    return {
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self"}


def _toolkit() -> str:
    return f"nemo-toolkit {version('nemo-toolkit')}"
