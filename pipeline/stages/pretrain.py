"""Pre-training: a Llama from scratch on the curated documents."""

from __future__ import annotations

from pipeline.schema import Model, Pretrain
from pipeline.stages.data_sets import documents
from pipeline.stages.models import load_tokenizer, tokenizer_folder
from pipeline.stages.perplexity import perplexity
from pipeline.stages.step import Step
from pipeline.wording import parameters


def run(step: Step) -> None:
    """Train from a seeded initialisation; publishes ``model/``."""
    from pipeline.engines.automodel import publish, session, tokenise
    from pipeline.engines.automodel.recipe import NextTokenRecipe

    settings, shape = step.section(Pretrain), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_tokenizer(step)
    data = step.inputs["data"]
    sets = {}
    for split in ("train", "validation"):
        texts = [record["text"] for record in documents(data, split)]
        sets[split], counts = tokenise.document_examples(tokenizer, texts, shape.context)
    files = session.prepare(step, settings, sets["train"], sets["validation"], "pretrain")
    start = step.state / "start"
    if not start.exists():
        publish.new_model(shape, tokenizer, settings.seed, start)
        step.seal(start)
    step.phase("train")
    work = session.Run(
        "pretrain", session.kind_of(NextTokenRecipe), str(start), str(tokenizer_folder(step)), *files
    )
    figures = session.run(step, work)
    reached = perplexity(figures["validation_loss"])
    step.finish(
        metrics={**figures, "validation_perplexity": reached, **counts},
        headline=f"{parameters(figures['parameters'])} parameters, validation perplexity {reached:.1f}",
    )
