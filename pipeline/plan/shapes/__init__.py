"""A model as the planner sees it: its layers, and what can be counted from them.

    shape = read("path/to/config.json")     # any supported Hugging Face family
    shape = of_recipe(recipe.model)         # the Llama that a recipe describes, or its base

A :class:`Shape` says how many parameters a model has, in all and for one token, how many bytes one token
leaves in the cache, and how many floating-point operations it costs; nothing here knows of GPUs or layouts.

shape.py        the model, and the numbers that follow from its layers
parts.py        what a layer is built of
dense.py        attention and feed-forward: Llama, Mistral, Qwen, Gemma
experts.py      mixtures of experts: Mixtral, Qwen3-MoE
latent.py       latent attention and shared experts: DeepSeek-V3
statespace.py   Mamba2, alone and in hybrids: Nemotron-H, Bamba
families.py     which family is read by whom
derivations.py  what each number was worked out from
fields.py       the settings of a configuration, one by one

All is checked, exactly, against models that transformers builds on the meta device (tests/stages/core/test_shapes.py).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.plan.shapes.families import READERS, SUPPORTED
from pipeline.plan.shapes.fields import Fields
from pipeline.plan.shapes.shape import Shape
from pipeline.runner.base import folder

__all__ = ["SUPPORTED", "Shape", "from_config", "of_recipe", "read"]


def read(path: str | Path) -> Shape:
    """The shape in a ``config.json``, or in the folder that has one.

    Raises :class:`UserError` for a file that is missing or no JSON, a family that is not supported, and a field that
    is missing or makes no sense.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read: {error.strerror}; give a Hugging Face config.json"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: is not JSON: {error}") from None
    return from_config(config, str(file))


def from_config(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a configuration describes; ``name`` says in errors where it is from.

    Raises :class:`UserError` for a family that is not supported, and a field that is missing or makes no sense.
    """
    if not isinstance(config, Mapping):
        raise UserError(f"{name}: is no Hugging Face configuration: expected one JSON object of settings")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in READERS:
        found = "is missing" if family is None else f"= {family!r} is not supported"
        raise UserError(f"{name}: model_type {found}; supported families: {', '.join(SUPPORTED)}")
    return READERS[family](Fields(config, name))


def of_recipe(model: schema.Model) -> Shape:
    """The shape of a recipe's model: of its base, where that is on this machine, or else as the recipe says.

    Raises :class:`UserError` where the base's ``config.json`` is of no use, or the recipe's numbers do not fit together.
    """
    base = folder(model) if model.base is not None else None
    if base is not None and (base / "config.json").is_file():
        return read(base)  # else what is missing is told where the base is checked
    config = {
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "max_position_embeddings": model.context,
        "tie_word_embeddings": model.tie_embeddings,
    }
    return from_config(config, "the recipe's model section")
