"""Instruction and preference data: from the documents, and from files of the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.schema import Curate
from pipeline.stages.curate.duplicates.minhash import content_key
from pipeline.stages.curate.pairs import content_pairs, hashed, limited, style_pairs
from pipeline.stages.curate.redact import KINDS, finds, redacted
from pipeline.stages.curate.shards import read_rows
from pipeline.stages.curate.split import SPLITS, split_of
from pipeline.stages.curate.user_data import UserData, instruction, preference, read_user_data
from pipeline.stages.step import Step, write_jsonl

if TYPE_CHECKING:
    from pipeline.stages.curate.account import Account

Records = dict[str, list[dict[str, Any]]]


def make_pairs(step: Step, curate: Curate, folders: list[Path], account: Account) -> None:
    """Write ``sft/`` and ``preference/``: a JSONL file a split.

    Pairs are short and held in memory, a few hundred bytes each.
    """
    sft: Records = {}
    preferences: Records = {}
    for done, split in enumerate(SPLITS, start=1):
        sft[split] = limited(_candidates(folders, split), account.left_out)
        style = style_pairs(sft[split], account.left_out)
        content = content_pairs(style, account.left_out)
        if split == "train":
            content = [pair for pair in content if hashed("share", pair["id"]) / 2**64 < curate.content_share]
        preferences[split] = style + content
        step.progress(done, len(SPLITS), "splits")
    for role, path, make, target in (
        ("instructions", curate.instructions, instruction, sft),
        ("preferences", curate.preferences, preference, preferences),
    ):
        if path is not None:
            data = read_user_data(Path(path), role, make, curate.max_record_mb << 20)
            account.user_data(data)
            _add(data, target, curate, account)
    for records in (sft, preferences):
        _settle(records, curate, account.left_out)
    for name, records in (("sft", sft), ("preference", preferences)):
        for split in SPLITS:
            kept = [{k: v for k, v in record.items() if k != "arguments"} for record in records[split]]
            write_jsonl(step.output / name / f"{split}.jsonl", kept)
    account.pairs(sft, preferences)


def _candidates(folders: list[Path], split: str) -> Iterator[list[dict[str, Any]]]:
    for folder in folders:
        path = folder / f"pairs.{split}.jsonl"
        if path.exists():
            for row in read_rows(path):
                yield row["pairs"]


def _add(data: UserData, target: Records, curate: Curate, account: Account) -> None:
    for record in data.records:
        if "redact" in curate.stages and not _redact(record, curate, account.redacted):
            account.left_out["holds personal data that drops it"] += 1
            continue
        # Equal prompts stay on one side.
        group = content_key(record.get("prompt") or record["messages"][0]["content"])
        target[split_of(group, curate.validation_share, curate.test_share)].append(record)


def _redact(record: dict[str, Any], curate: Curate, counts: Counter[tuple[str, str]]) -> bool:
    actions = {kind: getattr(curate.redact, kind) for kind in KINDS}
    kinds = tuple(kind for kind in KINDS if actions[kind] != "keep")

    def clean(text: str) -> str | None:
        found = finds(text, kinds, tuple(curate.redact.phone_regions))
        counts.update((find.kind, actions[find.kind]) for find in found)
        return None if any(actions[f.kind] == "drop" for f in found) else redacted(text, found, actions)

    holders: list[tuple[dict[str, Any], str]] = [
        (record, key) for key in ("prompt", "chosen", "rejected") if key in record
    ]
    holders += [(message, "content") for message in record.get("messages", ())]
    for holder, key in holders:
        text = clean(holder[key])
        if text is None:
            return False
        holder[key] = text
    return True


def _settle(records: Records, curate: Curate, left_out: Counter[str]) -> None:
    """No answer of the held-out splits stands word for word in training; fixed order; a limit."""
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


def _answer(record: dict[str, Any]) -> str:
    return str(record["chosen"] if "chosen" in record else record["messages"][-1]["content"])
