"""Alignment: preference optimisation on the preference pairs."""

from __future__ import annotations

from pipeline.schema import Align, Model
from pipeline.stages.models import latest_model, load_asking_tokenizer, model_folder, tokenizer_folder
from pipeline.stages.step import Step


def run(step: Step) -> None:
    """Align the model below with the pairs; the reference is that model as it was."""
    from pipeline.engines.automodel import session, tokenise
    from pipeline.engines.automodel.preference import PreferenceRecipe

    settings, shape = step.section(Align), step.section(Model)
    step.phase("tokenise")
    tokenizer = load_asking_tokenizer(step)
    source = {"curate": "data", "sample": "pairs"}[settings.pairs]
    data = step.inputs[source] / "preference"
    sets, kept, counts = {}, {}, {}
    for split in ("train", "validation"):
        file = data / f"{split}.jsonl"
        sets[split], kept[split], counts[split] = tokenise.preference_examples(
            tokenizer,
            tokenise.read_records(file),
            shape.context,
            too_long=settings.too_long,
            where=f"{settings.pairs}'s preference/{file.name}",
            mismatched=settings.loss == "kto",
            rewards=settings.loss.startswith("rpo"),
        )
    files = session.prepare(step, settings, sets["train"], sets["validation"], "align")
    parent = latest_model(step)
    start = model_folder(step, parent)
    step.phase("train")
    work = session.Run(
        "align",
        session.kind_of(PreferenceRecipe),
        str(start),
        str(tokenizer_folder(step)),
        *files,
        parent=parent,
        group=sets["train"].group,
        labels=tuple(record["kind"] for record in kept["validation"]),
    )
    figures = session.run(step, work)
    held_out = figures["held_out"]
    step.finish(
        metrics={**figures, "data": counts, "parent": parent},
        headline=f"held-out preference accuracy {held_out['accuracy']:.3f}, reward margin {held_out['margin']:.2f}, "
        + (f"KL {held_out['kl']:.3f} nats a token" if "kl" in held_out else "KL not measured"),
    )
