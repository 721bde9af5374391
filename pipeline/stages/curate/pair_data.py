"""Instruction and preference data: from the documents, and from files of the user's own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.attributes import measured
from pipeline.schema import Curate
from pipeline.stages.curate import chats, preferences, tokens
from pipeline.stages.curate.duplicates.minhash import content_key
from pipeline.stages.curate.language import cld2
from pipeline.stages.curate.pairs import content_pairs, hashed, limited, style_pairs
from pipeline.stages.curate.redact import KINDS, finds, merged, redacted
from pipeline.stages.curate.shards import read_rows
from pipeline.stages.curate.split import SPLITS, split_of
from pipeline.stages.curate.synthetic import Generated
from pipeline.stages.curate.user_data import (
    UserData,
    as_chat,
    instruction,
    preference,
    read_user_data,
    scored,
)
from pipeline.stages.step import Step, write_jsonl

if TYPE_CHECKING:
    from pipeline.stages.curate.account import Account

Records = dict[str, list[dict[str, Any]]]


def make_pairs(
    step: Step, curate: Curate, folders: list[Path], generated: Generated, account: Account
) -> None:
    """Write ``sft/`` and ``preference/``: a JSONL file a split.

    Pairs are short and held in memory, a few hundred bytes each.
    """
    sft: Records = {}
    pairs: Records = {}
    budget = Budget(tokens.counter(step.output / "tokenizer"), curate.chat_tokens)
    for done, split in enumerate(SPLITS, start=1):
        sft[split] = limited(_candidates(folders, split), account.left_out)
        style = style_pairs(sft[split], account.left_out)
        content = content_pairs(style, account.left_out)
        if split == "train":
            content = [pair for pair in content if hashed("share", pair["id"]) / 2**64 < curate.content_share]
        pairs[split] = style + content
        step.progress(done, len(SPLITS), "splits")
    _add(_instructions(curate, account, budget), sft, curate, account)
    _add(_preferences(curate, account, budget), pairs, curate, account)
    sft["train"] += generated.instructions
    pairs["train"] += generated.preferences
    for records in (sft, pairs):
        _settle(records, curate, account.left_out)
    for record in (record for split in SPLITS for record in sft[split]) if curate.attributes else ():
        record.setdefault("attributes", measured(curate.attributes, _answer(record)))
    for name, records in (("sft", sft), ("preference", pairs)):
        for split in SPLITS:
            kept = [{k: v for k, v in record.items() if k != "arguments"} for record in records[split]]
            write_jsonl(step.output / name / f"{split}.jsonl", kept)
    account.pairs(sft, pairs)


def _candidates(folders: list[Path], split: str) -> Iterator[list[dict[str, Any]]]:
    for folder in folders:
        path = folder / f"pairs.{split}.jsonl"
        if path.exists():
            for row in read_rows(path):
                yield row["pairs"]


@dataclass
class Budget:
    """How many tokens a chat may have (0: any number), and how they are counted."""

    count: Callable[[str], int]
    tokens: int

    def fault(self, record: dict[str, Any]) -> str | None:
        """What of a record is too long, or None; of a pair, either side."""
        if not self.tokens:
            return None
        sides = [as_chat(record)]
        if "rejected" in record:
            sides.append(as_chat({**record, "chosen": record["rejected"]}))
        faults = (chats.too_long(side, self.count, self.tokens) for side in sides)
        return next((fault for fault in faults if fault), None)


def _instructions(curate: Curate, account: Account, budget: Budget) -> list[dict[str, Any]]:
    if curate.instructions is None:
        return []
    data = read_user_data(Path(curate.instructions), "instructions", instruction, curate.max_record_mb << 20)
    records = _usable(data, curate, account, budget)
    account.instructions = chats.statistics(records, budget.count, lambda text: cld2(text)[0])
    return records


def _preferences(curate: Curate, account: Account, budget: Budget) -> list[dict[str, Any]]:
    limit = curate.max_record_mb << 20
    records = []
    if curate.preferences is not None:
        data = read_user_data(Path(curate.preferences), "preferences", preference, limit)
        records += _usable(data, curate, account, budget)
    if curate.scored.path is not None:
        records += _usable(_from_scores(curate, account, limit), curate, account, budget)
    if records:
        account.preferences = preferences.statistics(records, budget.count)
    return records


def _from_scores(curate: Curate, account: Account, limit: int) -> UserData:
    """The pairs of a file of scored answers."""
    path = Path(str(curate.scored.path))
    data = read_user_data(path, "scored", scored, limit)
    made = preferences.pairs_from_scores(
        data.records,
        min_margin=curate.scored.min_margin,
        pairs_per_prompt=curate.scored.pairs_per_prompt,
        policy=curate.scored.policy,
    )
    data.unused.update(made.unused)
    for index, reason in made.faults:
        data.faults.append(
            {"input": "scored", "file": str(path), "line": data.lines[index], "reason": reason}
        )
    account.left_out.update({f"scored answers: {reason}": count for reason, count in made.left_out.items()})
    names = [f"{path.name}#{number}" for number in range(1, len(made.pairs) + 1)]
    data.records = [
        {"id": name, **pair, "kind": "given", "name": name}
        for name, pair in zip(names, made.pairs, strict=True)
    ]
    return data


def _usable(data: UserData, curate: Curate, account: Account, budget: Budget) -> list[dict[str, Any]]:
    """The records without personal data and within the budget of tokens; the others are counted.

    Raises :class:`InputError` where more of the file cannot be read than the recipe allows.
    """
    kept = []
    for record in data.records:
        if "redact" in curate.stages and not _redact(record, curate, account.redacted):
            account.left_out["holds personal data that drops it"] += 1
            continue
        fault = budget.fault(record)
        if fault is not None:
            line = record["id"].rpartition(":")[2]
            data.faults.append(
                {"input": data.role, "file": "", "line": int(line) if line.isdigit() else 0, "reason": fault}
            )
            continue
        kept.append(record)
    data.check(curate.max_bad_share)
    account.user_data(data, len(kept))
    return kept


def _add(records: list[dict[str, Any]], target: Records, curate: Curate, account: Account) -> None:
    """Give the records to the splits; alike prompts stay on one side, repeated ones go by the recipe."""
    if not records:
        return
    settings = curate.prompts
    equal, alike = chats.duplicate_prompts(
        [as_chat(record) for record in records],
        ngram=settings.ngram,
        permutations=settings.permutations,
        bands=settings.bands,
        threshold=settings.threshold,
    )
    account.prompts["instructions" if "messages" in records[0] else "preferences"] = {
        "equal_prompts": sum(len(group) - 1 for group in equal),
        "alike_prompts": sum(len(group) - 1 for group in alike),
    }
    leader = list(range(len(records)))
    for group in [*alike, *equal]:  # alike groups hold the first of each equal one
        for member in group:
            leader[member] = leader[group[0]]
    gone: dict[int, str] = {}
    # Two pairs on one prompt teach two things; two chats on one prompt contradict or repeat each other.
    if settings.repeats != "keep" and "messages" in records[0]:
        gone.update({member: "a prompt that was there before" for group in equal for member in group[1:]})
    if settings.repeats == "drop-alike":
        gone.update({member: "a prompt like one before" for group in alike for member in group[1:]})
    for index, record in enumerate(records):
        if index in gone:
            account.left_out[gone[index]] += 1
            continue
        first = as_chat(records[leader[index]])["messages"][:-1]
        key = content_key(" ".join(turn["content"] for turn in first))
        target[split_of(key, curate.validation_share, curate.test_share)].append(record)


def _redact(record: dict[str, Any], curate: Curate, counts: Counter[tuple[str, str]]) -> bool:
    actions = {kind: getattr(curate.redact, kind) for kind in KINDS}
    kinds = tuple(kind for kind in KINDS if actions[kind] != "keep")

    def clean(text: str) -> str | None:
        found = finds(text, kinds, tuple(curate.redact.phone_regions))
        counts.update((find.kind, actions[find.kind]) for find in found)
        return (
            None if any(actions[f.kind] == "drop" for f in found) else redacted(text, merged(found), actions)
        )

    holders: list[tuple[dict[str, Any], str]] = [
        (record, key) for key in ("prompt", "chosen", "rejected") if isinstance(record.get(key), str)
    ]
    turns = record.get("messages", ()) if isinstance(record.get("prompt", ""), str) else record["prompt"]
    holders += [(message, "content") for message in turns]
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
