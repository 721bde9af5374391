"""Supervised fine-tuning on the instruction pairs: all weights, or LoRA adapters."""

from __future__ import annotations

from pipeline.schema import Model, Train
from pipeline.stages.models import latest_model, load_tokenizer, model_folder, tokenizer_folder
from pipeline.stages.step import Step


def run(step: Step) -> None:
    """Fine-tune the model below; the loss is on the answer tokens only."""
    from pipeline.engines.automodel import examples, publish, session
    from pipeline.engines.automodel.recipe import NextTokenRecipe

    settings, shape = step.section(Train), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_tokenizer(step)
    data = step.inputs["data"] / "sft"
    sets, counts = {}, {}
    for split in ("train", "validation"):
        records = examples.read_records(data / f"{split}.jsonl")
        sets[split], counts[split] = examples.instruction_examples(tokenizer, records, shape.context)
    files = session.prepare(step, settings, sets["train"], sets["validation"], "train")
    parent = latest_model(step)
    start = model_folder(step, parent)
    step.phase("load")
    recipe = session.build(
        NextTokenRecipe, step, settings, model=start, tokenizer=tokenizer_folder(step), files=files
    )
    step.phase("train")
    session.train(step, recipe)
    figures = recipe.final_figures()
    publish.publish_trained(
        step, settings, recipe.model_parts[0], start=start, tokenizer=tokenizer, parent=parent
    )
    step.finish(
        metrics={**figures, "data": counts, "parent": parent},
        headline=f"validation answer loss {figures['validation_loss']:.3f}",
    )
