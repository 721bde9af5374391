"""A reward model on the preference pairs.

Published is ``model/``, a Hugging Face folder of a sequence classification model with one
label: its single output is the reward.  ``score.weight`` is the head.  It is read at the
token that ends the answer, as transformers does by itself with sequences that are padded on
the right (or not at all).
"""

from __future__ import annotations

import shutil

from pipeline.schema import Model, Reward
from pipeline.stages.models import (
    latest_model,
    load_asking_tokenizer,
    merge_adapter,
    model_folder,
    tokenizer_folder,
)
from pipeline.stages.step import Step, write_json


def run(step: Step) -> None:
    """Train a scalar head, and the model below it, to score chosen answers above rejected ones."""
    from pipeline.engines.automodel import reward, session, tokenise

    settings, shape = step.section(Reward), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_asking_tokenizer(step)
    data = step.inputs["data"] / "preference"
    sets, kept, counts = {}, {}, {}
    for split in ("train", "validation"):
        file = data / f"{split}.jsonl"
        pairs, kept[split], counts[split] = tokenise.preference_examples(
            tokenizer,
            tokenise.read_records(file),
            shape.context - 1,  # the end token is read, too
            too_long=settings.too_long,
            where=f"curate's preference/{file.name}",
            rewards=settings.margin > 0,
        )
        sets[split] = reward.scored_at_end(pairs)
    files = session.prepare(step, settings, sets["train"], sets["validation"], "reward")
    parent = latest_model(step)
    start = step.state / "start"
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id != tokenizer.eos_token_id else None
    reward.scalar_head(model_folder(step, parent), start, pad)
    step.phase("train")
    work = session.Run(
        "reward",
        session.kind_of(reward.RewardRecipe),
        str(start),
        str(tokenizer_folder(step)),
        *files,
        parent=parent,
        group=2,
        labels=tuple(record["kind"] for record in kept["validation"]),
    )
    figures = session.run(step, work)
    folder = step.output / "model"
    if settings.peft != "none":
        shutil.rmtree(folder, ignore_errors=True)
        merge_adapter(start, step.output / "adapter", folder)
        shutil.rmtree(step.output / "adapter")
    (folder / "generation_config.json").unlink(missing_ok=True)  # it generates nothing
    write_json(step.output / "model.json", {"kind": "reward", "path": "model", "parent": parent})
    held_out = figures["held_out"]
    step.finish(
        metrics={**figures, "data": counts, "parent": parent},
        headline=f"held-out pairs ranked right {held_out['accuracy']:.3f}, margin {held_out['margin']:.2f}, "
        f"reward {held_out['reward_mean']:+.2f} with spread {held_out['reward_spread']:.2f}",
    )
