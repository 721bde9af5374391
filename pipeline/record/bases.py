"""A base model as readers of the record are told of it; :mod:`pipeline.runner.base_record` wrote it down.

A recipe's model section has defaults of a small Llama from scratch; beside a base they mean nothing, and whoever read
a report took them for the model's.
"""

from __future__ import annotations

from typing import Any

from pipeline.schema.training import SHAPE
from pipeline.wording import counted, parameters

IDLE = {f"model.{name}" for name in SHAPE}


def words_of(base: dict[str, Any]) -> str:
    """The base in a line."""
    revision = f" (revision {base['revision'][:12]})" if base["revision"] else ""
    licence = f"licence {base['licence']}" if base["licence"] else "its folder states no licence"
    return (
        f"{base['name']}{revision}, {parameters(base['parameters'])} parameters: {counted(base['layers'], 'layer')} of width "
        f"{base['hidden_size']:,} (feed-forward {base['intermediate_size']:,}), {counted(base['heads'], 'head')}, "
        f"{base['kv_heads']:,} for keys and values, vocabulary {base['vocab_size']:,}, made for {base['context'] or 'any number of'} "
        f"tokens; {licence}"
    )


def settings_shown(settings: dict[str, Any], base: dict[str, Any] | None) -> dict[str, Any]:
    """Flat settings as a reader should see them: without the shape of a model from scratch where there is a base."""
    return settings if base is None else {key: value for key, value in settings.items() if key not in IDLE}
