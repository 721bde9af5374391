"""Supervised fine-tuning on the instruction pairs: all weights, or adapters."""

from __future__ import annotations

from pipeline.schema import Model, Train
from pipeline.stages.models import latest_model, load_tokenizer, model_folder, tokenizer_folder
from pipeline.stages.step import InputError, Step


def run(step: Step) -> None:
    """Fine-tune the model below; the loss is on the answer tokens only."""
    from pipeline.engines.automodel import session, tokenise
    from pipeline.engines.automodel.recipe import NextTokenRecipe

    settings, shape = step.section(Train), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_tokenizer(step)
    data = step.inputs["data"] / "sft"
    sets, counts = {}, {}
    for split in ("train", "validation"):
        file = data / f"{split}.jsonl"
        sets[split], counts[split] = tokenise.instruction_examples(
            tokenizer,
            tokenise.read_records(file),
            shape.context,
            answers=settings.answers,
            too_long=settings.too_long,
            where=f"curate's sft/{file.name}",
            attributes=settings.attributes,
        )
    if settings.attributes and not counts["train"]["with_attributes"]:
        raise InputError(
            f"train.attributes: no record of curate's sft/train.jsonl has {' or '.join(settings.attributes)}; give "
            "curate records that carry them (curate.instructions), or have them measured (curate.attributes)"
        )
    files = session.prepare(step, settings, sets["train"], sets["validation"], "train")
    parent = latest_model(step)
    start = model_folder(step, parent)
    step.phase("train")
    work = session.Run(
        "train",
        session.kind_of(NextTokenRecipe),
        str(start),
        str(tokenizer_folder(step)),
        *files,
        parent=parent,
    )
    figures = session.run(step, work)
    step.finish(
        metrics={**figures, "data": counts, "parent": parent},
        headline=f"validation answer loss {figures['validation_loss']:.3f}",
    )
