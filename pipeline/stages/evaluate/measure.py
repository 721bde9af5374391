"""Everything that is measured of one model on the held-out data."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.schema import Evaluate
from pipeline.stages.evaluate.answers import greedy_answers
from pipeline.stages.evaluate.held_out import HeldOut
from pipeline.stages.evaluate.scoring import label_losses
from pipeline.stages.step import Step


def scores_of(
    step: Step, model: Any, tokenizer: Any, held_out: HeldOut, settings: Evaluate
) -> dict[str, Any]:
    """Raw scores of one model as plain JSON: per document, per answer, per pair, and its answers."""

    def progress(part: str) -> Any:
        return lambda done, total: step.progress(done, total, "sequences", part)

    def losses(examples: Any, part: str) -> Any:
        return label_losses(model, examples, settings.batch_size, progress(part))

    documents = losses(held_out.documents, "documents")
    own = losses(held_out.answers, "answers")
    swapped = losses(held_out.swapped, "answers to other questions")
    preferences = {}
    for kind, (examples, _) in held_out.preferences.items():
        both = losses(examples, f"{kind} pairs")
        preferences[kind] = {
            "chosen": [float(-loss.sum()) for loss in both[0::2]],
            "rejected": [float(-loss.sum()) for loss in both[1::2]],
            "chosen_tokens": [len(loss) for loss in both[0::2]],
            "rejected_tokens": [len(loss) for loss in both[1::2]],
        }
    questions = [record["messages"][:-1] for record in held_out.questions]
    answers = greedy_answers(
        model,
        tokenizer,
        questions,
        settings.max_new_tokens,
        settings.batch_size,
        progress("generated answers"),
    )
    return {
        "parameters": int(model.num_parameters()),
        "documents": {"loss": [float(x.sum()) for x in documents], "tokens": [len(x) for x in documents]},
        "answers": {
            "content": [float(x[:-1].sum()) for x in own],
            "end": [float(x[-1]) for x in own],
            "tokens": [len(x) - 1 for x in own],
            "swapped": [float(x[:-1].sum()) for x in swapped],
        },
        "preferences": preferences,
        "generated": answers,
    }


def wins(scores: dict[str, Any], normalised: bool) -> Any:
    """Per pair 1 where the chosen answer is likelier than the rejected one, 0.5 for a tie, else 0."""
    chosen, rejected = np.array(scores["chosen"]), np.array(scores["rejected"])
    if normalised:
        chosen, rejected = (
            chosen / np.array(scores["chosen_tokens"]),
            rejected / np.array(scores["rejected_tokens"]),
        )
    return np.where(chosen > rejected, 1.0, np.where(chosen == rejected, 0.5, 0.0))
