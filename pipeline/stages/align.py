"""Alignment: direct preference optimisation on the preference pairs."""

from __future__ import annotations

from pipeline.schema import Align, Model
from pipeline.stages.models import latest_model, load_tokenizer, model_folder, tokenizer_folder
from pipeline.stages.step import Step


def run(step: Step) -> None:
    """Align the model below with the pairs; the reference is that model as it was."""
    from pipeline.engines.automodel import examples, publish, session
    from pipeline.engines.automodel.dpo import DpoRecipe

    settings, shape = step.section(Align), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_tokenizer(step)
    data = step.inputs["data"] / "preference"
    sets, kept, counts = {}, {}, {}
    for split in ("train", "validation"):
        records = examples.read_records(data / f"{split}.jsonl")
        sets[split], kept[split], counts[split] = examples.preference_examples(
            tokenizer, records, shape.context
        )
    files = session.prepare(step, settings, sets["train"], sets["validation"], "align")
    parent = latest_model(step)
    start = model_folder(step, parent)
    step.phase("load")
    recipe = session.build(
        DpoRecipe, step, settings, model=start, tokenizer=tokenizer_folder(step), files=files, group=2
    )
    kinds = [record["kind"] for record in kept["validation"]]
    recipe.prefer(step, settings, kinds, step.state / "reference.safetensors")
    session.train(step, recipe)
    figures = recipe.final_figures()
    publish.publish_trained(
        step, settings, recipe.model_parts[0], start=start, tokenizer=tokenizer, parent=parent
    )
    held_out = figures["held_out"]
    step.finish(
        metrics={**figures, "data": counts, "parent": parent},
        headline=f"held-out preference accuracy {held_out['accuracy']:.3f}, reward margin {held_out['margin']:.2f}, "
        f"KL {held_out['kl']:.3f} nats a token",
    )
