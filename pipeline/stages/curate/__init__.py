"""Curation: raw documents to pre-training, instruction and preference data.

    raw documents -> Curator's Unicode repair and heuristic filters -> redaction
    -> exact and near-duplicates out -> split by groups of alike documents
    -> three data sets and a tokenizer

The counts reconcile: raw documents = kept + dropped, each drop by its reason
(``report.json``).
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.schema import Curate, Model
from pipeline.stages.curate import tokens
from pipeline.stages.curate.clean import clean_shards
from pipeline.stages.curate.duplicates import LEAK_ROWS, clusters, content_key, signatures
from pipeline.stages.curate.pairs import content_pairs, hashed, instruction_pairs, style_pairs
from pipeline.stages.curate.redact import redact
from pipeline.stages.curate.sources import Quarantine, write_raw_shards
from pipeline.stages.curate.split import SPLITS, split_of
from pipeline.stages.curate.user_data import read_instructions, read_preferences
from pipeline.stages.step import InputError, Step, read_jsonl, write_json, write_jsonl

LEAK_THRESHOLD = 0.5  # documents at least this alike stay on one side of the split
Records = dict[str, list[dict[str, Any]]]


def run(step: Step) -> None:
    """Curate the recipe's sources; see the module's docstring for the order of the work."""
    curate, model = step.section(Curate), step.section(Model)
    workers = curate.workers or step.threads
    step.phase("read sources")
    raw, quarantine = write_raw_shards(step, curate, workers)
    step.phase("clean and filter")
    shards, dropped, redacted = clean_shards(step, raw, curate.filters, curate.redact, workers)
    documents = [record for shard in shards for record in read_jsonl(shard)]
    raw_count = len(documents) + sum(dropped.values())
    step.phase("find duplicates")
    documents, groups = _deduplicate(documents, curate, workers, dropped)
    if not documents:
        reasons = ", ".join(f"{count:,} by {name}" for name, count in dropped.most_common() if count)
        raise InputError(f"curate: no document is left of {raw_count:,}: {reasons}; loosen curate.filters")
    step.phase("make data sets")
    by_split = _split(documents, groups, curate)
    left_out: Counter[str] = Counter()
    data = {
        "pretrain": _documents_set(by_split, curate),
        **_pairs(step, by_split, curate, quarantine, redacted, left_out),
    }
    quarantine.check(curate.max_bad_share)
    for name, splits in data.items():
        for split in SPLITS:
            write_jsonl(step.output / name / f"{split}.jsonl", splits[split])
    write_jsonl(step.output / "quarantine.jsonl", quarantine.bad)
    step.phase("train the tokenizer")
    train_tokens = _tokenizer(step, data, model)
    sizes = {name: {split: len(splits[split]) for split in SPLITS} for name, splits in data.items()}
    report = {
        "documents": {"raw": raw_count, "kept": len(documents), "dropped": dict(sorted(dropped.items()))},
        "unreadable_records": len(quarantine.bad),
        "redacted": dict(sorted(redacted.items())),
        "left_out_of_pairs": dict(sorted(left_out.items())),
        "sizes": sizes,
        "preference_kinds": {
            split: dict(sorted(Counter(pair["kind"] for pair in data["preference"][split]).items()))
            for split in SPLITS
        },
        "chosen_shorter_share": _shorter_share(data["preference"]["train"]),
        "pretrain_train_tokens": train_tokens,
    }
    write_json(step.output / "report.json", report)
    if quarantine.bad:
        step.warning(f"{len(quarantine.bad):,} input records could not be read; see quarantine.jsonl")
    if not data["sft"]["train"]:
        step.warning(
            "no document gave an instruction pair (no titles or summaries); see the README, 'Your own documents'"
        )
    step.finish(
        metrics={**report, "inputs": quarantine.counts()},
        headline=f"{len(documents):,} of {raw_count:,} documents, {sizes['sft']['train']:,} instruction and "
        f"{sizes['preference']['train']:,} preference pairs",
    )


def _deduplicate(
    documents: list[dict[str, Any]], curate: Curate, workers: int, dropped: Counter[str]
) -> tuple[list[dict[str, Any]], list[str]]:
    """The documents without duplicates, and for each the name of its group of alike documents."""
    first: dict[str, int] = {}
    unique = []
    for index, document in enumerate(documents):
        if first.setdefault(content_key(document["text"]), index) == index:
            unique.append(document)
    dropped["exact duplicate"] += len(documents) - len(unique)
    rows = signatures([document["text"] for document in unique], curate.dedup, workers)
    leaders = clusters(rows, curate.dedup.bands, curate.dedup.threshold)
    kept = [index for index, leader in enumerate(leaders) if leader == index]
    dropped["near-duplicate"] += len(unique) - len(kept)
    left = [unique[index] for index in kept]
    # Alike in what the model will see: documents are cut, and long ones often begin alike.
    seen = signatures(
        [cut(document["text"], curate.max_characters) for document in left], curate.dedup, workers
    )
    loose = clusters(seen, seen.shape[1] // LEAK_ROWS, LEAK_THRESHOLD)
    return left, [left[leader]["id"] for leader in loose]


def _split(documents: list[dict[str, Any]], groups: list[str], curate: Curate) -> Records:
    by_split: Records = {split: [] for split in SPLITS}
    for document, group in zip(documents, groups, strict=True):
        by_split[split_of(group, curate.validation_share, curate.test_share)].append(document)
    return by_split


def _documents_set(by_split: Records, curate: Curate) -> Records:
    return {
        split: [
            {
                "id": document["id"],
                "text": with_header(document["name"], document["text"], curate.max_characters),
                "name": document["name"],
                "source": document["source"],
            }
            for document in documents
        ]
        for split, documents in by_split.items()
    }


def with_header(name: str, text: str, max_characters: int) -> str:
    """A pre-training document: its name on a line of its own, then its text, cut at a word."""
    return f"# {name}\n{cut(text, max_characters)}" if name else cut(text, max_characters)


def cut(text: str, max_characters: int) -> str:
    """The text up to the last whole word within ``max_characters`` (0: all of it)."""
    if not max_characters or len(text) <= max_characters:
        return text
    return text[:max_characters].rsplit(None, 1)[0]


def _pairs(
    step: Step,
    by_split: Records,
    curate: Curate,
    quarantine: Quarantine,
    redacted: Counter[str],
    left_out: Counter[str],
) -> dict[str, Records]:
    sft: Records = {}
    preference: Records = {}
    for done, split in enumerate(SPLITS, start=1):
        documents = by_split[split]
        pairs = instruction_pairs(documents, left_out)
        by_id = {document["id"]: document for document in documents}
        style = style_pairs(by_id, pairs, left_out)
        content = content_pairs(style, left_out)
        if split == "train":
            content = [pair for pair in content if hashed("share", pair["id"]) / 2**64 < curate.content_share]
        sft[split], preference[split] = pairs, style + content
        step.progress(done, len(SPLITS), "splits")
    for read, role, path, target in (
        (read_instructions, "instructions", curate.instructions, sft),
        (read_preferences, "preferences", curate.preferences, preference),
    ):
        quarantine.role = role
        for record in read(Path(path), quarantine) if path else ():
            for key in ("prompt", "chosen", "rejected"):
                if key in record:
                    record[key] = redact(record[key], curate.redact, redacted)
            for message in record.get("messages", ()):
                message["content"] = redact(message["content"], curate.redact, redacted)
            # Equal prompts stay on one side.
            group = content_key(record.get("prompt") or record["messages"][0]["content"])
            target[split_of(group, curate.validation_share, curate.test_share)].append(record)
    for records in (sft, preference):
        # No answer of the test stands word for word in the training data.
        known = {_answer(record) for record in records["train"]}
        for split in ("validation", "test"):
            fresh = [record for record in records[split] if _answer(record) not in known]
            left_out["held-out answer also in training"] += len(records[split]) - len(fresh)
            records[split] = fresh
        for split in SPLITS:
            records[split].sort(key=lambda record: hashed("order", record["id"]))
        if curate.max_pairs:
            left_out["beyond max_pairs"] += max(0, len(records["train"]) - curate.max_pairs)
            records["train"] = records["train"][: curate.max_pairs]
    return {"sft": sft, "preference": preference}


def _answer(record: dict[str, Any]) -> str:
    return str(record["chosen"] if "chosen" in record else record["messages"][-1]["content"])


def _tokenizer(step: Step, data: dict[str, Records], model: Model) -> int:
    folder = step.output / "tokenizer"
    texts = [record["text"] for record in data["pretrain"]["train"]]
    if step.base_model:
        tokens.copy_tokenizer(step.base_model, folder)
    else:
        chats = [m["content"] for record in data["sft"]["train"] for m in record["messages"]]
        os.environ["RAYON_NUM_THREADS"] = str(step.threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true"
        tokens.train_tokenizer([*texts, *chats], model.vocab_size, model.context, folder)
    return tokens.count_tokens(folder, texts)


def _shorter_share(pairs: list[dict[str, Any]]) -> float | None:
    style = [pair for pair in pairs if pair["kind"] == "style"]
    if not style:
        return None
    return sum(len(pair["chosen"]) < len(pair["rejected"]) for pair in style) / len(style)
