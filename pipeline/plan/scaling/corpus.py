"""How much text the base recipe of a sweep has: from its curation, where that has run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline import graph
from pipeline.errors import UserError
from pipeline.plan.scaling.budget import positive
from pipeline.recipe import LoadedRecipe
from pipeline.runner.identity import parts_of
from pipeline.runner.store import Store


@dataclass(frozen=True)
class Corpus:
    """Mean tokens of a training sequence, and where the number is from; training tokens and validation sequences, if known."""

    tokens_per_sequence: float
    source: str
    tokens: float | None = None
    validation: int | None = None
    warnings: tuple[str, ...] = ()

    def validation_batches(self, batch: int) -> int | None:
        """Batches that hold the whole validation split."""
        return math.ceil(self.validation / batch) if self.validation else None


def corpus_of(loaded: LoadedRecipe, runs: Path, said: str | None) -> Corpus:
    """What the latest curation of this recipe counted; ``said`` is --tokens-per-sequence.

    A training sequence is a document between two end-of-text tokens, cut at the context, and sees one token more than the document
    has (``engines/automodel/tokenise.py``).  Raises :class:`UserError` for a sequence longer than the context.
    """
    context = float(loaded.settings.model.context)
    given = positive(said, "--tokens-per-sequence") if said is not None else None
    if given is not None and given > context:
        raise UserError(f"--tokens-per-sequence {said}: is more than model.context = {context:.0f}")
    artifact = Store(runs, loaded.name).latest("curate")
    if artifact is None:
        if given is not None:
            return Corpus(given, "--tokens-per-sequence")
        return Corpus(
            context,
            "model.context",
            warnings=(
                f"curation of {loaded.name} has not run under {runs}: sequences count as full and repeats are not known; "
                f"run `lifecycle curate {loaded.name}` first, or say --tokens-per-sequence",
            ),
        )
    manifest = artifact.manifest
    step = graph.Step(graph.BY_NAME["curate"], ())
    same = manifest["parts"]["settings"] == parts_of(step, loaded.settings, {}, {})["settings"]
    warnings = (
        ()
        if same
        else (
            f"the latest curation of {loaded.name} was made with other settings: its counts are near at best",
        )
    )
    metrics = manifest["metrics"]
    tokens, sizes = float(metrics["pretrain_train_tokens"]), metrics["sizes"]["pretrain"]
    seen = tokens + sizes["train"]
    mean = seen / max(sizes["train"], seen / context)
    return Corpus(
        given or mean,
        "--tokens-per-sequence" if given else f"curation of {loaded.name}",
        seen,
        int(sizes["validation"]),
        warnings,
    )
