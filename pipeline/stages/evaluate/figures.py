"""Figures of each model from its raw scores, their intervals, and the changes between models."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from pipeline.stages.evaluate.held_out import HeldOut
from pipeline.stages.evaluate.intervals import mean_interval, ratio_interval
from pipeline.stages.evaluate.measure import wins
from pipeline.stages.house_style import check
from pipeline.stages.perplexity import perplexity

Figure = dict[str, Any]


def model_figures(scores: dict[str, Any], resamples: int) -> Figure:
    """The figures of one model; a figure without test data is None."""
    answers, documents = scores["answers"], scores["documents"]
    tokens = np.array(answers["tokens"], dtype=float)
    content, end = np.array(answers["content"]), np.array(answers["end"])
    swapped = np.array(answers["swapped"])
    gap, gap_low, gap_high = ratio_interval(swapped - content, tokens, resamples)
    generated = scores["generated"]
    broken = [check(answer) for answer in generated]
    style, style_low, style_high = mean_interval([not rules for rules in broken], resamples)
    return {
        "perplexity": _exp(_ratio(sum(documents["loss"]), sum(documents["tokens"]))),
        "answers": len(tokens),
        "answer_loss": _ratio(content.sum(), tokens.sum()),
        "answer_loss_with_end": _ratio(content.sum() + end.sum(), tokens.sum() + len(end)),
        "wrong_question_gap": _known(gap),
        "wrong_question_gap_ci": _known_pair(gap_low, gap_high),
        "preference": {
            kind: {
                "summed": _known(float(wins(pairs, False).mean())) if pairs["chosen"] else None,
                "normalised": _known(float(wins(pairs, True).mean())) if pairs["chosen"] else None,
                "pairs": len(pairs["chosen"]),
            }
            for kind, pairs in scores["preferences"].items()
        },
        "house_style_share": _known(style),
        "house_style_share_ci": _known_pair(style_low, style_high),
        "house_style_broken": dict(Counter(rule for rules in broken for rule in rules).most_common()),
        "distinct_answer_share": len(set(generated)) / len(generated) if generated else None,
        "mean_answer_words": sum(len(a.split()) for a in generated) / len(generated) if generated else None,
    }


def change(before: dict[str, Any], after: dict[str, Any], resamples: int) -> Figure:
    """What changed from one model to the next, on the same items, with paired 95% intervals."""
    tokens = np.array(after["answers"]["tokens"], dtype=float)
    difference = np.array(after["answers"]["content"]) - np.array(before["answers"]["content"])
    loss, low, high = ratio_interval(difference, tokens, resamples)
    base = _ratio(sum(before["answers"]["content"]), tokens.sum())
    preference = {}
    for kind, pairs in after["preferences"].items():
        entry: Figure = {}
        for name, normalised in (("summed", False), ("normalised", True)):
            paired = wins(pairs, normalised) - wins(before["preferences"][kind], normalised)
            mean, down, up = mean_interval(paired, resamples)
            entry[name] = _known(mean)
            entry[f"{name}_ci"] = _known_pair(down, up)
        preference[kind] = entry
    obeys = [not check(answer) for answer in after["generated"]]
    obeyed = [not check(answer) for answer in before["generated"]]
    style, style_low, style_high = mean_interval(np.subtract(obeys, obeyed, dtype=float), resamples)
    return {
        "answer_loss": _known(loss),
        "answer_loss_ci": _known_pair(low, high),
        "answer_loss_relative": _known(loss / base) if base else None,
        "preference": preference,
        "house_style_share": _known(style),
        "house_style_share_ci": _known_pair(style_low, style_high),
    }


def baselines(held_out: HeldOut, unigram: Any, bigram: Any) -> Figure:
    """Baselines on the same items: n-gram perplexities, shorter-answer rule, the authors' own style."""
    labels = held_out.documents.labels.numpy()
    inputs = held_out.documents.inputs.numpy()
    authors = [record["messages"][-1]["content"] for record in held_out.questions]
    return {
        "unigram_perplexity": _exp(float(unigram.losses(labels).mean())) if len(labels) else None,
        "bigram_perplexity": _exp(float(bigram.losses(inputs, labels).mean())) if len(labels) else None,
        "shorter_answer_accuracy": {
            kind: float(np.mean([_shorter(record) for record in records])) if records else None
            for kind, (_, records) in held_out.preferences.items()
        },
        "authors_house_style_share": sum(not check(a) for a in authors) / len(authors) if authors else None,
    }


def gate_figures(
    names: list[str],
    models: dict[str, Figure],
    changes: dict[str, Figure],
    aligned_on: list[str],
    max_pairs: int,
) -> Figure:
    """What the gate needs: the last model against the one before it, on every kind of pairs.

    ``aligned_on`` are the kinds of pairs that alignment was given, whether or not any of them is held out;
    ``max_pairs`` is how many pairs of a kind, and answers, were to be looked at.
    """
    model = names[-1]
    parent = names[-2] if len(names) > 1 else None
    if parent is None:
        return {"model": model, "parent": None}
    changed, before = changes[model], models[parent]["answer_loss"]
    interval = changed["answer_loss_ci"]
    return {
        "model": model,
        "parent": parent,
        "answers": models[model]["answers"],
        "answer_loss_change": changed["answer_loss_relative"],
        "answer_loss_change_ci": [side / before for side in interval] if interval and before else None,
        "kinds": {
            kind: {
                "pairs": models[model]["preference"][kind]["pairs"],
                "change": entry["summed"],
                "change_ci": entry["summed_ci"],
            }
            for kind, entry in changed["preference"].items()
        },
        "aligned_on": aligned_on if model == "align" else [],
        "max_pairs": max_pairs,
    }


def _shorter(record: dict[str, Any]) -> float:
    chosen, rejected = len(record["chosen"]), len(record["rejected"])
    return 1.0 if chosen < rejected else 0.5 if chosen == rejected else 0.0


def _ratio(total: float, count: float) -> float | None:
    return float(total / count) if count else None


def _exp(value: float | None) -> float | None:
    return None if value is None else perplexity(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _known_pair(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) else [float(low), float(high)]
