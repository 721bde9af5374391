"""How long the sequences of a training step are on average: counted where it has run, or curation has; else as stated."""

from __future__ import annotations

from typing import Any

from pipeline import schema
from pipeline.plan.quantity import Quantity, given
from pipeline.schema.training import Optimisation

NAME = "tokens of a sequence"
Manifest = dict[str, Any]


def sequence_tokens(
    recipe: schema.Recipe, stage: str, sequences: int, curated: Manifest | None, before: Manifest | None
) -> Quantity:
    """Mean tokens of a sequence, padding left out.

    ``before`` is the manifest of the stage's last run, ``curated`` that of curation; an example has ``sequences``.  In this
    order: the last run's own count, curation's, ``plan.example_tokens``, the whole context.
    """
    counted = before["metrics"].get("tokens") if before else None
    if before and counted:
        settings = before["parts"]["settings"]
        batch = settings[stage]["global_batch_size"]
        value = counted / (before["metrics"]["steps"] * batch * sequences)
        return given(NAME, value, "token", f"counted in the run of {before['started'][:10]}")
    documents = curated["metrics"].get("pretrain_train_tokens") if curated and stage == "pretrain" else None
    if curated and documents:
        value = documents / max(1, curated["metrics"]["sizes"]["pretrain"]["train"])
        return given(
            NAME,
            min(value, recipe.model.context),
            "token",
            f"counted by curation on {curated['started'][:10]}",
        )
    if recipe.plan.example_tokens:
        value = min(recipe.plan.example_tokens, recipe.model.context)
        return given(NAME, value, "token", "plan.example_tokens")
    return given(NAME, recipe.model.context, "token", "model.context: as long as they may be")


def looks(settings: Optimisation) -> int:
    """Looks at the validation loss in a run, the last one included."""
    return settings.max_steps // (settings.best_every or settings.validate_every) + 1
