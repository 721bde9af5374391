"""Best of n: the model's own answers, scored, as preference pairs and instruction data.

Published::

    preference/{train,validation,test}.jsonl   pairs of a better and a worse answer, as align reads them
    sft/{train,validation,test}.jsonl          each prompt with its best answer (rejection sampling), as train does
    report.json                                what was drawn, what was left out and why, and the scores

Every draw has a seed of its own, from its prompt and its number, so neither an interruption nor
the order of the work can show in what is drawn.  Prompts are answered and scored shard by shard
(``state/SPLIT-00000.jsonl``); only unfinished shards are made again.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from pipeline import strict_json
from pipeline.schema import Model, Sample
from pipeline.stages.models import latest_model, load_asking_tokenizer, model_folder
from pipeline.stages.step import InputError, Step, read_jsonl, write_json, write_jsonl

SPLITS = ("train", "validation", "test")
FILES = {"instructions": "sft", "preferences": "preference"}

Record = dict[str, Any]


def run(step: Step) -> None:
    """Draw, score and pair; raises :class:`InputError` where there is no prompt that fits the context."""
    import torch

    settings = step.section(Sample)
    torch.set_num_threads(step.threads)
    tokenizer = load_asking_tokenizer(step)
    parent = latest_model(step)
    drawn: dict[str, list[Record]] = {}
    left_out: Counter[str] = Counter()
    step.phase("draw and score")
    asked = {split: prompts(step, tokenizer, split, left_out) for split in SPLITS}
    if not asked["train"]:
        raise InputError(
            f"sample: no training prompt of curate's {FILES[settings.prompts]}/ leaves room for sample.max_new_tokens = "
            f"{settings.max_new_tokens} in model.context; lower it, or give curate more data"
        )
    worker = _Worker(step, settings, tokenizer, parent)
    total, done = sum(map(len, asked.values())), 0
    for split, records in asked.items():
        drawn[split] = []
        for number, first in enumerate(range(0, len(records), settings.shard_prompts)):
            some = records[first : first + settings.shard_prompts]
            path = step.state / f"{split}-{number:05d}.jsonl"
            if not path.exists():
                part = path.with_suffix(".part")
                write_jsonl(part, worker.answered(some, done, total))
                part.rename(path)
                step.seal(path)
            drawn[split] += read_jsonl(path)
            done += len(some)
    step.phase("make pairs")
    figures = {split: _publish(step, settings, split, records, left_out) for split, records in drawn.items()}
    report = {
        "model": parent,
        "splits": figures,
        "left_out": {k: n for k, n in sorted(left_out.items()) if n},
    }
    write_json(step.output / "report.json", report)
    train = figures["train"]
    if not train["pairs"]:
        step.warning(
            "no prompt has two answers of different scores: raise sample.temperature or sample.answers"
        )
    step.finish(
        metrics=report,
        headline=f"{train['pairs']:,} pairs from {train['answers']:,} answers to {train['prompts']:,} prompts, "
        f"score {_shown(train['expected_best'], 0)}, best of {settings.answers} {_shown(train['expected_best'], -1)}",
    )


def _shown(values: list[float], place: int) -> str:
    return f"{values[place]:.2f}" if values else "unknown"


def prompts(step: Step, tokenizer: Any, split: str, left_out: Counter[str]) -> list[Record]:
    """The prompts of a split that are answered: ``id`` and ``prompt`` (turns), each prompt once."""
    from pipeline.engines.automodel.tokenise import prompt_ids

    settings, context = step.section(Sample), step.section(Model).context
    wanted = settings.max_prompts if split == "train" else settings.max_held_out
    found: dict[str, Record] = {}
    for record in read_jsonl(step.inputs["data"] / FILES[settings.prompts] / f"{split}.jsonl"):
        if len(found) == wanted:
            break
        given = record["messages"][:-1] if "messages" in record else record["prompt"]
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        key = strict_json.dumps(turns, ensure_ascii=False)
        if key in found:
            left_out["a prompt that was there before"] += 1
        elif len(prompt_ids(tokenizer, turns)) + settings.max_new_tokens > context:
            left_out["a prompt that leaves no room for an answer"] += 1
        else:
            found[key] = {"id": record["id"], "prompt": turns}
    return list(found.values())


class _Worker:
    """Draws and scores; the models are loaded when the first unfinished shard asks for them."""

    def __init__(self, step: Step, settings: Sample, tokenizer: Any, parent: str) -> None:
        self.step, self.settings, self.tokenizer, self.parent = step, settings, tokenizer, parent
        self.model: Any = None
        self.score: Any = None

    def answered(self, records: list[Record], done: int, total: int) -> list[Record]:
        """The records with ``answers``: ``text``, ``ended``, and the ``score`` of each that ended."""
        from pipeline.stages.reading import load_model
        from pipeline.stages.sample.draw import draw
        from pipeline.stages.sample.score import scorer

        settings = self.settings
        if self.model is None:
            self.model = load_model(model_folder(self.step, self.parent))
            self.score = scorer(settings, self.tokenizer, self.step.inputs.get("reward"))

        def progress(share: float) -> None:
            self.step.progress(round(done + share * len(records), 1), total, "prompts")

        answers = draw(self.model, self.tokenizer, records, settings, progress)
        kept = [
            (place, each)
            for place, own in enumerate(answers)
            for each in own
            if each["ended"] and each["text"]
        ]
        scores = self.score(
            [records[place]["prompt"] for place, _ in kept], [each["text"] for _, each in kept]
        )
        for (_, each), score in zip(kept, scores, strict=True):
            each["score"] = score
        return [{**record, "answers": own} for record, own in zip(records, answers, strict=True)]


def _publish(
    step: Step, settings: Sample, split: str, records: list[Record], left_out: Counter[str]
) -> dict[str, Any]:
    """Write a split's pairs and best answers; returns its figures."""
    from pipeline.stages.curate.preferences import pairs_from_scores

    usable, best = [], []
    for record in records:
        scored = [each for each in record["answers"] if "score" in each]
        left_out["an answer that had not ended"] += sum(not each["ended"] for each in record["answers"])
        left_out["an empty answer"] += sum(each["ended"] and not each["text"] for each in record["answers"])
        if not scored:
            left_out["a prompt without a usable answer"] += 1
            continue
        usable.append(scored)
        top = max(scored, key=lambda each: each["score"])  # the first drawn of equal ones
        turns = [*record["prompt"], {"role": "assistant", "content": top["text"]}]
        best.append(
            {
                "id": record["id"],
                "messages": turns,
                "name": record["id"],
                "about": "sampled",
                "score": top["score"],
            }
        )
        record["scored"] = scored
    made = pairs_from_scores(
        (
            {
                "prompt": record["prompt"],
                "responses": [each["text"] for each in record["scored"]],
                "scores": [each["score"] for each in record["scored"]],
            }
            for record in records
            if "scored" in record
        ),
        min_margin=settings.min_margin,
        pairs_per_prompt=settings.pairs_per_prompt,
        policy=settings.policy,
    )
    left_out.update(made.left_out)
    left_out.update(reason for _, reason in made.faults)
    names = [f"sampled/{split}/{number}" for number in range(1, len(made.pairs) + 1)]
    pairs = [
        {"id": n, **pair, "kind": "sampled", "name": n} for n, pair in zip(names, made.pairs, strict=True)
    ]
    write_jsonl(step.output / "preference" / f"{split}.jsonl", pairs)
    write_jsonl(step.output / "sft" / f"{split}.jsonl", best)
    longer = [len(pair["chosen"]) > len(pair["rejected"]) for pair in pairs]
    return {
        "prompts": len(records),
        "answers": sum(map(len, usable)),
        "distinct_share": _mean([len({each["text"] for each in own}) / len(own) for own in usable]),
        "pairs": len(pairs),
        "mean_margin": _mean([pair["score_chosen"] - pair["score_rejected"] for pair in pairs]),
        "longer_chosen_share": _mean(longer),
        "expected_best": expected_best([[each["score"] for each in own] for own in usable], settings.answers),
    }


def expected_best(scores: list[list[float]], most: int) -> list[float]:
    """Mean score of the best of k answers, for k from 1 to ``most``: the unbiased estimate from n of them.

    Over all choices of k of a prompt's n answers (Chen et al. 2021, "Codex", section 2.1, does so
    for pass@k); a prompt with fewer than k answers counts with the best of those it has.
    """
    found = []
    for k in range(1, most + 1):
        each = []
        for own in scores:
            ranked, n = sorted(own), len(own)
            size = min(k, n)
            ways = math.comb(n, size)
            each.append(sum(score * math.comb(place, size - 1) for place, score in enumerate(ranked)) / ways)
        if each:
            found.append(round(sum(each) / len(each), 6))
    return found


def _mean(values: list[Any]) -> float | None:
    return round(sum(values) / len(values), 6) if values else None
