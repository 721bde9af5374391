"""Whether curation made what the later steps of a recipe need, looked at before the first of them spends anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pipeline import schema

SPLITS = ("train", "validation")  # training looks at held-out data as it goes
MADE_OF = {
    "pretrain": "documents",
    "sft": "instruction pairs (chats)",
    "preference": "preference pairs",
}
MORE = {
    "pretrain": "curate.sources",
    "sft": "curate.sources or curate.instructions",
    "preference": "curate.sources or curate.preferences",
}


def lacking(recipe: schema.Recipe, names: list[str], metrics: Mapping[str, Any]) -> Iterator[str]:
    """What the steps of these names cannot be done without and ``metrics`` of curation count none of, in words."""
    sizes = metrics.get("sizes") or {}
    for name in names:
        for data, split in _needs(recipe, name):
            if data in sizes and not sizes[data].get(split, 0):
                share = f", or a larger curate.{split}_share" if split != "train" else ""
                yield (
                    f"{name} needs {MADE_OF[data]} for {split}, and curation made none: give more "
                    f"({MORE[data]}){share}, or leave {name} out of the recipe's stages"
                )


def _needs(recipe: schema.Recipe, name: str) -> Iterator[tuple[str, str]]:
    """The data sets and splits that a step reads, and refuses to do without."""
    read = {"pretrain": "pretrain", "train": "sft", "reward": "preference"}
    if recipe.align.pairs == "curate":
        read["align"] = "preference"
    if name in read:
        yield from ((read[name], split) for split in SPLITS)
    if name == "sample":
        yield {"instructions": "sft", "preferences": "preference"}[recipe.sample.prompts], "train"
