"""Settings that would change nothing beside another setting, and so are refused where a person gave them.

Files under ``configs/`` hold values for several ways to train (adapters' rates beside those of all weights), so what
counts is who set a value: :func:`given` tells a recipe's own lines and ``SET`` from what they draw on, and an older
layer from the one that made it idle.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import schema
from pipeline.layers import Origin
from pipeline.schema import Optimisation
from pipeline.schema.training import LOSS_SETTINGS, SHAPE
from pipeline.serving.targets import CPU_OPENVINO, PRECISIONS, TARGETS

RANKS = {"default": 0, "submission": 0, "configs file": 1, "recipe file": 2, "site file": 2, "SET": 3}
OF_GPUS = (
    "tensor", "pipeline", "kv_cache_fraction", "kv_cache_reuse", "chunked_prefill", "max_batch_size", "max_num_tokens", "max_lora_rank",
)  # fmt: skip
WITHOUT_REFERENCE = ("simpo", "orpo")
Idle = tuple[
    str, str, str
]  # the setting (or the section whose settings all are), what makes it idle, and why


def idle(recipe: schema.Recipe) -> Iterator[Idle]:
    """The settings that change nothing in a recipe as it is, as (setting, the setting that makes it so, why)."""
    model = recipe.model
    if model.base is None:
        yield (
            "model.chat_template",
            "model.base",
            "is for a base model; from scratch, curation writes the template",
        )
        yield "model.revision", "model.base", "is of a hub model, and model.base names none"
    else:
        for name in SHAPE:
            yield f"model.{name}", "model.base", f"is read off the base model, {model.base}"
        yield "pretrain", "model.base", f"is not done where the model comes from a base, {model.base}"
    for section in ("pretrain", "train", "reward", "align"):
        yield from _training(section, getattr(recipe, section))
    yield from _export(recipe.export)


def given(history: Mapping[str, list[tuple[Origin, Any]]], setting: str, because: str) -> Iterator[str]:
    """The settings under ``setting`` that a person gave, and not before what makes them idle was set.

    ``history`` is :class:`pipeline.layers.Layers`'s.  What a submission wrote down is nobody's wish.
    """

    def rank(name: str) -> int:
        layers = history.get(name)
        return RANKS[layers[-1][0].layer] if layers else 0

    least = max(RANKS["recipe file"], rank(because))
    for name in history:
        if (name == setting or name.startswith(f"{setting}.")) and rank(name) >= least:
            yield name


def _training(section: str, settings: Optimisation) -> Iterator[Idle]:
    engine = getattr(settings, "engine", "automodel")
    peft = getattr(settings, "peft", "none")
    if engine == "automodel":
        yield f"{section}.nemo", f"{section}.engine", "is for the engines nemo and aligner"
    else:
        of_automodel = (
            "parallel packing keep_checkpoints async_checkpoint save_precision lora.lr exact_kl reference"
        )
        for name in of_automodel.split():
            yield (
                f"{section}.{name}",
                f"{section}.engine",
                f"is for the engine automodel, and {engine} trains",
            )
    if peft == "none":
        yield (
            f"{section}.lora",
            f"{section}.peft",
            f"is for adapters, and all weights are trained; set {section}.peft=lora",
        )
    elif engine == "automodel":
        if not isinstance(settings, schema.Reward):
            yield (
                f"{section}.save_precision",
                f"{section}.peft",
                "is for whole models; adapters are published in fp32",
            )
        yield (
            f"{section}.exact_kl",
            f"{section}.peft",
            "is for all weights: with adapters no copy is needed to measure the KL",
        )
        rate = settings.lora.lr  # type: ignore[attr-defined]
        if rate is not None:
            yield (
                f"{section}.lr",
                f"{section}.lora.lr",
                f"is for all weights: adapters are trained with {section}.lora.lr = {rate:g}",
            )
    if settings.best_every:
        for name in ("validate_every", "checkpoint_every"):
            yield (
                f"{section}.{name}",
                f"{section}.best_every",
                f"gives way to {section}.best_every = {settings.best_every}",
            )
    if settings.schedule == "constant":
        yield (
            f"{section}.min_lr_share",
            f"{section}.schedule",
            "is where a rate falls to, and a constant one does not fall",
        )
    if isinstance(settings, schema.Align) and settings.loss in WITHOUT_REFERENCE:
        owners = ", ".join(loss for loss in LOSS_SETTINGS if loss not in WITHOUT_REFERENCE)
        yield f"{section}.reference", f"{section}.loss", f"is for losses with a reference policy: {owners}"


def _export(export: schema.Export) -> Iterator[Idle]:
    target, weights = TARGETS[export.target], PRECISIONS[export.weights]
    if target.gpu:
        yield "export.kv_cache_gb", "export.target", f"is for {CPU_OPENVINO}, and {export.target} serves"
    else:
        for name in ("gpu", *(f"serving.{each}" for each in OF_GPUS)):
            yield f"export.{name}", "export.target", f"is for GPU targets, and {export.target} serves"
    if not weights.modelopt and weights.name != "int4":
        for name in ("calibration_samples", "calibration_tokens"):
            yield (
                f"export.{name}",
                "export.weights",
                f"is for weights that are fitted to texts, and {export.weights} is not",
            )
