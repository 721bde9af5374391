"""Pre-training: a small Llama from scratch on the curated documents."""

from __future__ import annotations

import math

from pipeline.schema import Model, Pretrain
from pipeline.stages.data_sets import documents
from pipeline.stages.models import load_tokenizer, tokenizer_folder
from pipeline.stages.step import Step


def run(step: Step) -> None:
    """Train from a seeded initialisation; publishes ``model/``."""
    from pipeline.engines.automodel import examples, publish, session
    from pipeline.engines.automodel.recipe import NextTokenRecipe

    settings, shape = step.section(Pretrain), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_tokenizer(step)
    data = step.inputs["data"]
    sets = {}
    for split in ("train", "validation"):
        texts = [record["text"] for record in documents(data, split)]
        sets[split], counts = examples.document_examples(tokenizer, texts, shape.context)
    files = session.prepare(step, settings, sets["train"], sets["validation"], "pretrain")
    start = step.state / "start"
    if not start.exists():
        publish.new_model(shape, tokenizer, settings.seed, start)
        step.seal(start)
    step.phase("load")
    recipe = session.build(
        NextTokenRecipe, step, settings, model=start, tokenizer=tokenizer_folder(step), files=files
    )
    step.phase("train")
    session.train(step, recipe)
    figures = recipe.final_figures()
    publish.publish_full(step, recipe.model_parts[0], start, tokenizer)
    perplexity = math.exp(figures["validation_loss"])
    parameters = sum(p.numel() for p in recipe.model_parts[0].parameters())
    step.finish(
        metrics={**figures, "validation_perplexity": perplexity, "parameters": parameters, **counts},
        headline=f"{parameters / 1e6:.1f}M parameters, validation perplexity {perplexity:.1f}",
    )
