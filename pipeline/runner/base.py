"""The user's base model: a local Hugging Face folder, or a model of the Hugging Face hub.

A hub model (``model.base: ORG/NAME``, ``model.revision``) is looked for in the hub's local cache,
where ``lifecycle fetch`` puts it; steps never reach for the network.  :func:`check` looks at
everything that can be wrong with a base before anything starts.
"""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path
from typing import Any

from pipeline import base_files, inert, schema
from pipeline.errors import UserError
from pipeline.recipe import LoadedRecipe
from pipeline.runner import base_content
from pipeline.surroundings import hub_cache
from pipeline.training_checks import target_faults

ASKING = {"train", "reward", "sample", "align", "evaluate", "export"}  # stages that render conversations
COMMIT = re.compile(r"[\w.-]*[\w-][\w.-]*")  # a branch's name may have slashes, a snapshot's folder not
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
TEMPLATES = Path(__file__).resolve().parents[2] / "configs" / "chat_templates"


def is_hub_id(base: str) -> bool:
    """Whether a base is a hub model's id: ``ORG/NAME``, and no folder of that name."""
    return HUB_ID.fullmatch(base) is not None and not Path(base).exists()


def folder(model: schema.Model) -> Path | None:
    """Where the base lies on this machine; None for a hub model that was not fetched.

    Follows the hub cache's layout (``models--ORG--NAME/snapshots/COMMIT``; huggingface_hub,
    "Understand caching") and its variables HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME.
    """
    assert model.base is not None
    if not is_hub_id(model.base):
        return Path(model.base)
    cache = hub_cache(os.environ)
    if cache is None:
        return None
    kept = cache / f"models--{model.base.replace('/', '--')}"
    reference = kept / "refs" / model.revision
    commit = model.revision
    if reference.is_file():
        commit = reference.read_bytes()[:100].decode("ascii", "replace").strip()
    found = kept / "snapshots" / commit
    return found if COMMIT.fullmatch(commit) and (found / "config.json").exists() else None


def template(name: str) -> Path:
    """The file of ``model.chat_template``: one of ``configs/chat_templates``, or a path."""
    own = TEMPLATES / f"{name}.jinja"
    return own if own.is_file() else Path(name)


def check(loaded: LoadedRecipe) -> None:
    """Raise :class:`UserError` unless ``model.base`` is whole, and of a kind that can be trained."""
    model = loaded.settings.model
    where = f"{loaded.origin('model.base')}: model.base"
    base = folder(model)
    if base is None:
        raise UserError(
            f"{where}: {model.base} (revision {model.revision}) is not on this machine: `make fetch RECIPE={loaded.name}` "
            "downloads it. Where its licence has to be accepted, do so on its page and put your token into the "
            "environment as HF_TOKEN; or set model.base to a local Hugging Face folder"
        )
    if not base.is_dir():
        raise UserError(f"{where}: there is no folder {base}; give a local Hugging Face folder or a hub id")
    if not is_hub_id(str(model.base)):
        for key in inert.given(loaded.history, "model.revision", "model.base"):
            raise UserError(
                f"{loaded.origin(key)}: {key}: would change nothing: it is of a hub model, and {model.base} is a folder"
            )
    try:
        config = _check_files(base)
    except base_files.Broken as error:
        raise UserError(f"{where}: {base}: {error}") from None
    except OSError as error:
        file = Path(error.filename).name if isinstance(error.filename, str) else base.name
        raise UserError(f"{where}: {base}: {file} cannot be read: {error.strerror}") from None
    longest = config.get("max_position_embeddings") or model.context
    if model.context > longest:
        raise UserError(
            f"{loaded.origin('model.context')}: model.context = {model.context}, and {base} was made for {longest}"
        )
    _check_template(loaded, base)
    depth, tied = config["num_hidden_layers"], bool(config.get("tie_word_embeddings", False))
    for section in ("train", "reward", "align"):
        for setting, fault in target_faults(loaded.settings, section, depth, tied):
            raise UserError(f"{loaded.origin(setting)}: {setting}: {fault}")


def _check_files(base: Path) -> dict[str, Any]:
    """Hold every file of the folder that a step will read to what it has to be; returns the configuration."""
    from pipeline.plan import shapes  # which asks this module where a base lies

    for link, target in base_files.leading_out(base):
        raise base_files.Broken(
            f"{link.name}: is a link that leads out of the folder, to {target}; put a copy in its place"
        )
    if (base / "adapter_config.json").exists():
        raise base_files.Broken(
            "adapter_config.json: the folder holds an adapter, which would be laid over the model unseen; merge it, or take it out"
        )
    for name, what in (
        (base_files.CONFIG, "it is no Hugging Face model folder"),
        (base_files.TOKENIZER, "a fast tokenizer is needed"),
    ):
        if not (base / name).is_file():
            raise base_files.Broken(f"there is no {name}: {what}")
    base_files.weight_files(base)  # first, for a folder of pickles is the commonest mistake
    config = base_content.config(base)
    try:
        shape = shapes.from_config(config, base_files.CONFIG)
    except UserError as error:
        raise base_files.Broken(str(error)) from None
    base_content.vocabulary(base, shape.vocab)
    base_content.settings_of_tokenizer(base)
    base_content.generation(base, shape.vocab)
    base_content.weights(base, config)
    return config


def _check_template(loaded: LoadedRecipe, base: Path) -> None:
    name = loaded.settings.model.chat_template
    if name is not None and not template(name).is_file():
        own = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
        raise UserError(
            f"{loaded.origin('model.chat_template')}: model.chat_template: there is neither a file {name} nor a "
            f"template of that name; there are: {own}"
        )
    if not ASKING & set(loaded.settings.stages):
        return
    from pipeline.chat_templates import base_fault  # jinja2, which no other verb's start should wait for

    day = loaded.settings.model.template_date
    fault = base_fault(
        base, None if name is None else template(name), None if day is None else date.fromisoformat(day)
    )
    if fault:
        setting = "model.base" if name is None else "model.chat_template"
        raise UserError(
            f"{loaded.origin(setting)}: {setting}: the chat template of {base if name is None else name} {fault}"
        )
