"""What is made of a document: Curator's Nemotron-CC texts, and pairs with a critique."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
from nemo_curator.models.client.llm_client import GenerationConfig
from nemo_curator.stages.synthetic.nemotron_cc.base import BaseSyntheticStage
from nemo_curator.stages.synthetic.nemotron_cc.nemotron_cc import (
    DistillStage,
    DiverseQAStage,
    ExtractKnowledgeStage,
    KnowledgeListPostProcessingStage,
    KnowledgeListStage,
)
from nemo_curator.tasks import DocumentBatch

from pipeline.schema import Synthetic
from pipeline.stages.curate.synthetic.client import MeteredClient
from pipeline.stages.curate.synthetic.generated import Generated
from pipeline.stages.curate.synthetic.ledger import Ledger

BATCH = 64  # documents whose requests are made together
QA_PREFIX = "Here are the questions and answers based on the provided text:"
DISTILLED_PREFIX = "Paraphrased Text:"
MOST_QA = 8

PAIR_SYSTEM = "You write training data for an assistant. You answer with one JSON object and nothing else."
PAIR_PROMPT = """Read the text. Write one question that it answers, the best answer that the text supports, and a worse answer:
one that reads well but is incomplete, vague or wrong about the text.

Text:
{document}

Answer with {{"question": "...", "answer": "...", "worse_answer": "..."}}"""
CRITIQUE_SYSTEM = "You judge answers by a text, strictly. You answer with one JSON object and nothing else."
CRITIQUE_PROMPT = """Score two answers to a question from 1 (wrong or useless) to 5 (right, complete and supported by the text).

Text:
{document}

Question: {question}

Answer A: {one}

Answer B: {two}

Answer with {{"a": 1-5, "b": 1-5, "reason": "one sentence"}}"""


def generate(
    documents: Iterable[dict[str, Any]], settings: Synthetic, state: Path, progress: Callable[[int], None]
) -> Generated:
    """Run the recipe's tasks over documents (``id``, ``text``, ``name``, ``source``, ``origin``).

    ``state`` is the folder of the ledger.  Raises :class:`pipeline.stages.step.InputError` for a refused
    key, model or address and when the cap on spending is reached.
    """
    ledger = Ledger(state / "synthetic.jsonl")
    client = MeteredClient(settings, ledger)
    made = Generated()
    done = 0
    try:
        for batch in _batches(documents):
            for task in settings.tasks:
                TASKS[task](batch, settings, client, made)
            done += len(batch)
            progress(done)
    finally:
        client.close()
        ledger.close()
    prompt, completion = ledger.tokens()
    made.dropped.update(client.failures)
    made.figures = {
        "documents": done,
        "requests": client.requests,
        "answers_from_the_ledger": client.reused,
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "spent": round(client.spent(), 6),
    }
    return made


def _batches(documents: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    found = iter(documents)
    while batch := list(islice(found, BATCH)):
        yield batch


def _run(stage: BaseSyntheticStage, rows: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, dtype=object)
    return stage.process(DocumentBatch(dataset_name="synthetic", data=frame)).to_pandas()


def _options(settings: Synthetic) -> GenerationConfig:
    return GenerationConfig(
        max_tokens=settings.max_tokens, temperature=settings.temperature, seed=settings.seed
    )


def _texts(
    cls: type[BaseSyntheticStage],
    task: str,
    finish: Callable[[dict[str, Any], str], str],
) -> Callable[[list[dict[str, Any]], Synthetic, MeteredClient, Generated], None]:
    """A task that makes one new text of each document by a stage of Curator's."""

    def run(rows: list[dict[str, Any]], settings: Synthetic, client: MeteredClient, made: Generated) -> None:
        stage = cls(client=client, model_name=settings.model, generation_config=_options(settings))
        frame = _run(stage, [{"id": row["id"], "text": row["text"]} for row in rows])
        for row, answer in zip(rows, frame[stage.output_field].tolist(), strict=True):
            text = finish(row, answer).strip() if answer else ""
            if not text:
                made.dropped[f"{task}: no usable answer"] += 1
                continue
            made.documents.append(
                {
                    "id": f"{row['id']}/{task}",
                    "name": row["name"],
                    "kind": "synthetic",
                    "source": row["source"],
                    "origin": row["origin"],
                    "text": text,
                    "arguments": [],
                }
            )

    return run


def _diverse_qa(row: dict[str, Any], answer: str) -> str:
    """The document and some of the questions on it.

    Curator's post-processing draws them with Python's global generator; here which ones and
    how many is drawn by the document's id, so the same answers make the same text.
    """
    pairs: list[str] = []
    for line in (line.strip().removeprefix("- ").strip() for line in answer.split("\n")):
        if not line or line == QA_PREFIX:
            continue
        if line.startswith("Question:"):
            pairs.append(line)
        elif pairs:
            pairs[-1] += "\n" + line
        else:
            return ""
    if not pairs:
        return ""
    pairs.sort(key=lambda pair: hashlib.sha256(f"{row['id']}\0{pair}".encode("utf-8", "replace")).digest())
    digest = hashlib.sha256(f"how many\0{row['id']}".encode("utf-8", "replace")).digest()
    chosen = pairs[: 1 + digest[0] % min(MOST_QA, len(pairs))]
    return "\n\n".join([row["text"], *chosen])


def _distilled(row: dict[str, Any], answer: str) -> str:
    return answer.strip().removeprefix(DISTILLED_PREFIX)


def _as_it_is(row: dict[str, Any], answer: str) -> str:
    return answer


def _listed(row: dict[str, Any], answer: str) -> str:
    frame = pd.DataFrame({"knowledge_list": [answer]}, dtype=object)
    batch = KnowledgeListPostProcessingStage().process(DocumentBatch(dataset_name="list", data=frame))
    return str(batch.to_pandas()["knowledge_list"].iloc[0])


def _pairs(rows: list[dict[str, Any]], settings: Synthetic, client: MeteredClient, made: Generated) -> None:
    """A question with a good and a worse answer, kept only where a critique finds them so."""
    options = {"client": client, "model_name": settings.model, "generation_config": _options(settings)}
    write = BaseSyntheticStage(
        system_prompt=PAIR_SYSTEM, prompt=PAIR_PROMPT, input_field="text", output_field="pair", **options
    )
    frame = _run(write, [{"id": row["id"], "text": row["text"]} for row in rows])
    asked = []
    for row, answer in zip(rows, frame["pair"].tolist(), strict=True):
        found = parsed(answer, ("question", "answer", "worse_answer"))
        if found is None or found["answer"] == found["worse_answer"]:
            made.dropped["pairs: no usable answer"] += 1
            continue
        # The better one stands first for half of the documents: judges favour places.
        swapped = hashlib.sha256(f"place\0{row['id']}".encode("utf-8", "replace")).digest()[0] % 2 == 1
        one, two = ("worse_answer", "answer") if swapped else ("answer", "worse_answer")
        prompt = CRITIQUE_PROMPT.format(
            document=row["text"], question=found["question"], one=found[one], two=found[two]
        )
        asked.append((row, found, swapped, prompt))
    if not asked:
        return
    judge = BaseSyntheticStage(
        system_prompt=CRITIQUE_SYSTEM,
        prompt="{document}",
        input_field="text",
        output_field="verdict",
        **options,
    )
    verdicts = _run(judge, [{"id": row["id"], "text": prompt} for row, _, _, prompt in asked])[
        "verdict"
    ].tolist()
    for (row, found, swapped, _), verdict in zip(asked, verdicts, strict=True):
        reason = _judged(verdict, swapped, settings.min_critique_score)
        if reason is not None:
            made.dropped[f"pairs: {reason}"] += 1
            continue
        identifier = f"{row['id']}/pair"
        turns = [
            {"role": "user", "content": found["question"]},
            {"role": "assistant", "content": found["answer"]},
        ]
        made.instructions.append(
            {"id": identifier, "messages": turns, "name": row["name"], "about": "synthetic"}
        )
        made.preferences.append(
            {
                "id": identifier,
                "prompt": found["question"],
                "chosen": found["answer"],
                "rejected": found["worse_answer"],
                "kind": "synthetic",
                "name": row["name"],
            }
        )


def _judged(verdict: str, swapped: bool, least: int) -> str | None:
    """Why a pair is not kept, or None."""
    scores = parsed(verdict, ("a", "b"))
    try:
        a, b = (int(scores[name]) for name in ("a", "b")) if scores else (0, 0)
    except ValueError:
        a = b = 0
    if not (1 <= a <= 5 and 1 <= b <= 5):
        return "no usable critique"
    good, worse = (b, a) if swapped else (a, b)
    if good < least:
        return f"the critique gives the answer less than {least}"
    return None if good > worse else "the critique does not prefer the answer"


def parsed(answer: str, names: tuple[str, ...]) -> dict[str, str] | None:
    """The object in a model's answer with text under each of ``names``; None where there is none.

    Code fences and words around the object are passed over; anything else is not.
    """
    match = re.search(r"\{.*\}", answer, re.DOTALL)
    if match is None:
        return None
    try:
        found = json.loads(match.group())
    except ValueError:
        return None
    values = {name: str(found.get(name, "")).strip() for name in names} if isinstance(found, dict) else {}
    return values if values and all(values.values()) else None


TASKS = {
    "diverse-qa": _texts(DiverseQAStage, "diverse-qa", _diverse_qa),
    "distil": _texts(DistillStage, "distil", _distilled),
    "extract-knowledge": _texts(ExtractKnowledgeStage, "extract-knowledge", _as_it_is),
    "knowledge-list": _texts(KnowledgeListStage, "knowledge-list", _listed),
    "pairs": _pairs,
}
