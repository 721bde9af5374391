"""Evaluation: base, fine-tuned and aligned model side by side, each beside honest baselines.

All models are scored on the same held-out items, on the same devices (:mod:`pipeline.stages.reading`).  A model's raw scores are kept
under ``state/`` once they are complete, so an interrupted evaluation goes on with the
next model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from pipeline import strict_json
from pipeline.schema import Evaluate, Model
from pipeline.stages.data_sets import documents
from pipeline.stages.models import available_models, load_asking_tokenizer, model_folder
from pipeline.stages.step import InputError, Step, read_jsonl, write_json
from pipeline.wording import fixed


def run(step: Step) -> None:
    """Score every model that the step can reach; writes ``evaluation.json`` and ``evaluation.md``."""
    import torch

    from pipeline.stages.evaluate import figures, table
    from pipeline.stages.evaluate.held_out import question_of, read_held_out
    from pipeline.stages.evaluate.measure import scores_of
    from pipeline.stages.reading import load_model

    settings = step.section(Evaluate)
    torch.set_num_threads(step.threads)
    tokenizer = load_asking_tokenizer(step)
    step.phase("read held-out data")
    names = available_models(step)
    context = _context(step, names[0])
    held_out = read_held_out(step.inputs["data"], tokenizer, settings, context)
    scores: dict[str, Any] = {}
    for name in names:
        cache = step.state / f"scores-{name}.json"
        step.phase(name)
        if not cache.exists():
            model = load_model(model_folder(step, name))
            measured = scores_of(step, model, tokenizer, held_out, settings)
            if fault := strict_json.not_finite(measured):
                raise InputError(
                    f"evaluate: {name} gives held-out data scores that are not finite ({fault}): its weights are broken, "
                    f"or too large for the precision they are stored in; train it anew, or put another model.base in its place"
                )
            write_json(cache, measured)
            step.seal(cache)
        scores[name] = json.loads(cache.read_text(encoding="utf-8"))
    step.phase("baselines")
    unigram, bigram = _ngrams(step, tokenizer, context)
    models = {name: figures.model_figures(scores[name], settings.bootstrap) for name in names}
    changes = {
        after: figures.change(scores[before], scores[after], settings.bootstrap)
        for before, after in pairwise(names)
    }
    report = {
        "order": names,
        "kinds": list(held_out.preferences),
        "models": models,
        "changes": changes,
        "baselines": figures.baselines(held_out, unigram, bigram),
        "gate": figures.gate_figures(names, models, changes, _aligned_on(step), settings.max_pairs),
        "scored": {
            **held_out.read,
            "answers": len(held_out.answers),
            **{f"{kind} pairs": len(examples) for kind, (examples, _) in held_out.preferences.items()},
            "generated answers": len(held_out.questions),
        },
        "skipped": held_out.skipped,
        "parameters": {name: scores[name].get("parameters") for name in names},
        "answers": [
            {
                "question": question_of(record["messages"]),
                "authors": record["messages"][-1]["content"],
                "models": {name: scores[name]["generated"][place] for name in names},
            }
            for place, record in enumerate(held_out.questions[: settings.shown])
        ],
    }
    write_json(step.output / "evaluation.json", report)
    (step.output / "evaluation.md").write_text(table.markdown(report), encoding="utf-8")
    step.finish(metrics={k: v for k, v in report.items() if k != "answers"}, headline=_headline(report))


def _aligned_on(step: Step) -> list[str]:
    """The kinds of preference pairs that curation gave to alignment."""
    file = step.inputs["data"] / "preference" / "train.jsonl"
    return sorted({str(record["kind"]) for record in read_jsonl(file)}) if file.exists() else []


def _context(step: Step, name: str) -> int:
    config = json.loads((model_folder(step, name) / "config.json").read_text(encoding="utf-8"))
    return min(step.section(Model).context, int(config["max_position_embeddings"]))


def _ngrams(step: Step, tokenizer: Any, context: int) -> tuple[Any, Any]:
    from pipeline.engines.automodel.tokenise import document_examples
    from pipeline.stages.evaluate.ngram import Bigram, Unigram

    texts = [record["text"] for record in documents(step.inputs["data"], "train")]
    examples, _ = document_examples(tokenizer, texts, context)
    inputs, labels = examples.inputs.numpy(), examples.labels.numpy()
    return Unigram(labels, len(tokenizer)), Bigram(inputs, labels, len(tokenizer))


def _headline(report: dict[str, Any]) -> str:
    names, models = report["order"], report["models"]
    parts = []
    if models[names[0]]["perplexity"] is not None:
        parts.append(f"perplexity {models[names[0]]['perplexity']:.1f}")
    picks: list[tuple[str, Callable[[Any], Any]]] = [
        ("answer loss", lambda m: m["answer_loss"]),
        ("style accuracy", lambda m: m["preference"].get("style", {}).get("summed")),
        ("house style", lambda m: m["house_style_share"]),
    ]
    for title, pick in picks:
        values = [pick(models[name]) for name in names]
        if all(value is not None for value in values):
            parts.append(f"{title} {' -> '.join(fixed(value, 2) for value in values)}")
    return ", ".join(parts)
