"""Instruction and preference data: from the documents, from files of the user's own, from a model.

What is published is checked after the last transformation (redaction, decontamination), and every
record that is not published is counted by its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.attributes import measured
from pipeline.schema import Curate
from pipeline.stages.curate import chats, preferences, tokens
from pipeline.stages.curate.decontaminate import Grams, Screen
from pipeline.stages.curate.duplicates.minhash import content_key
from pipeline.stages.curate.language import cld2
from pipeline.stages.curate.pairs import content_pairs, hashed, limited, style_pairs
from pipeline.stages.curate.prompts import answer_of, asked, known, record_key, sides
from pipeline.stages.curate.redact import KINDS, NOTHING_LEFT, finds, merged, only_tags, redacted
from pipeline.stages.curate.shards import read_rows
from pipeline.stages.curate.split import SPLITS
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

Record = dict[str, Any]
Records = dict[str, list[Record]]
UNREAD = {"id", "name", "kind", "about", "arguments", "attributes"}  # of a record: no text of anybody's


def make_pairs(
    step: Step,
    curate: Curate,
    folders: list[Path],
    generated: Generated,
    grams: Path | None,
    account: Account,
) -> None:
    """Write ``sft/`` and ``preference/``: a JSONL file a split.

    ``grams`` are the n-grams of evaluation data.  Pairs are short and held in memory, a few hundred
    bytes each.
    """
    left_out = account.left_out
    budget = Budget(tokens.counter(step.output / "tokenizer"), curate.chat_tokens)
    made: list[tuple[Record, str | None]] = []
    for done, split in enumerate(SPLITS, start=1):
        chosen = limited(_candidates(folders, split), left_out)
        style = style_pairs(chosen, left_out)
        content = content_pairs(style, left_out)
        if split == "train":
            content = [
                pair for pair in content if hashed("share", record_key(pair)) / 2**64 < curate.content_share
            ]
        made += [(record, split) for record in (*chosen, *style, *content) if _sound(record, left_out)]
        step.progress(done, len(SPLITS), "splits")
    theirs = [*_instructions(curate, account, budget), *_preferences(curate, account, budget)]
    models: list[tuple[Record, str | None]] = [
        (record, "train")
        for record in (*generated.instructions, *generated.preferences)
        if _clean(record, curate, account) and _sound(record, left_out) and _fits(record, budget, left_out)
    ]
    # Of equal prompts the first stays: the user's own goes before a model's, and that before a document's.
    candidates = _without_repeats([*((record, None) for record in theirs), *models, *made], curate, account)
    found = sides([record for record, _ in candidates], [split for _, split in candidates], curate)
    for note in found.notes:
        step.warning(note)
    placed = [
        (record, split, given is None)
        for (record, given), split in zip(candidates, found.splits, strict=True)
    ]
    placed = _without_evaluation_data(placed, grams, curate, account)
    settled = [
        _settle([each for each in placed if ("chosen" in each[0]) == pairs], curate, left_out)
        for pairs in (False, True)
    ]
    for record in (record for split in SPLITS for record in settled[0][split]) if curate.attributes else ():
        record.setdefault("attributes", measured(curate.attributes, answer_of(record)))
    for name, records in zip(("sft", "preference"), settled, strict=True):
        for split in SPLITS:
            kept = [{k: v for k, v in record.items() if k != "arguments"} for record in records[split]]
            write_jsonl(step.output / name / f"{split}.jsonl", kept)
    account.pairs(*settled)


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


def _instructions(curate: Curate, account: Account, budget: Budget) -> list[Record]:
    if curate.instructions is None:
        return []
    data = read_user_data(Path(curate.instructions), "instructions", instruction, curate.max_record_mb << 20)
    records = _usable(data, curate, account, budget)
    account.instructions = chats.statistics(records, budget.count, lambda text: cld2(text)[0])
    return records


def _preferences(curate: Curate, account: Account, budget: Budget) -> list[Record]:
    limit = curate.max_record_mb << 20
    records = []
    if curate.preferences is not None:
        data = read_user_data(Path(curate.preferences), "preferences", preference, limit)
        records += _usable(data, curate, account, budget)
    if curate.scored.path is not None:
        records += _usable(_from_scores(curate, account, limit), curate, account, budget, cleaned=True)
    if records:
        account.preferences = preferences.statistics(records, budget.count)
    return records


def _from_scores(curate: Curate, account: Account, limit: int) -> UserData:
    """The pairs of a file of scored answers.

    Personal data go first: answers that differ in nothing else are one answer, and make no pair.
    """
    path = Path(str(curate.scored.path))
    data = read_user_data(path, "scored", scored, limit)
    kept = [place for place, record in enumerate(data.records) if _clean(record, curate, account)]
    data.lines = [data.lines[place] for place in kept]
    data.records = [data.records[place] for place in kept]
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


def _usable(
    data: UserData, curate: Curate, account: Account, budget: Budget, *, cleaned: bool = False
) -> list[Record]:
    """The records without personal data, sound and within the budget of tokens; the others are counted.

    ``cleaned`` data are without personal data already.  Raises :class:`InputError` where more of the
    file cannot be read than the recipe allows.
    """
    kept = []
    for record in data.records:
        if not cleaned and not _clean(record, curate, account):
            continue
        if not _sound(record, account.left_out):
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


def _clean(record: Record, curate: Curate, account: Account) -> bool:
    """Take personal data out of a record's texts; False, and counted, where they drop it."""
    if "redact" not in curate.stages:
        return True
    actions = {kind: getattr(curate.redact, kind) for kind in KINDS}
    kinds = tuple(kind for kind in KINDS if actions[kind] != "keep")
    regions = tuple(curate.redact.phone_regions)
    fatal = False

    def clean(value: Any) -> Any:
        nonlocal fatal
        if isinstance(value, dict):
            return {key: clean(each) for key, each in value.items()}
        if isinstance(value, list):
            return [clean(each) for each in value]
        if not isinstance(value, str):
            return value
        found = finds(value, kinds, regions)
        account.redacted.update((find.kind, actions[find.kind]) for find in merged(found))
        fatal = fatal or any(actions[find.kind] == "drop" for find in found)
        return redacted(value, merged(found), actions)

    for key in record.keys() - UNREAD:
        record[key] = clean(record[key])
    if fatal:
        account.left_out["holds personal data that drops it"] += 1
    return not fatal


def _sound(record: Record, left_out: Counter[str]) -> bool:
    """Whether a record still teaches something after all that was done to it; counted where not."""
    answers = [record[side] for side in ("chosen", "rejected") if side in record]
    if "messages" in record:
        answers = [turn["content"] for turn in record["messages"] if turn["role"] == "assistant"]
    reason = None
    if not all(text.strip() for text in (asked(record), *answers)):
        reason = "a turn is empty"
    elif any(map(only_tags, (asked(record), *answers))):
        reason = NOTHING_LEFT
    elif "rejected" in record and record["chosen"].strip() == record["rejected"].strip():
        reason = "chosen and rejected are equal"
    if reason:
        left_out[reason] += 1
    return reason is None


def _fits(record: Record, budget: Budget, left_out: Counter[str]) -> bool:
    if budget.fault(record) is None:
        return True
    left_out["longer than a chat may be"] += 1
    return False


def _without_repeats(
    candidates: list[tuple[Record, str | None]], curate: Curate, account: Account
) -> list[tuple[Record, str | None]]:
    """The records without those whose prompt was there before, as ``curate.prompts.repeats`` says.

    Two pairs on one prompt teach two things, so of preferences only whole repetitions go; two chats on
    one prompt contradict or repeat each other.
    """
    settings = curate.prompts
    gone: dict[int, str] = {}
    for data_set in ("instructions", "preferences"):
        pairs = data_set == "preferences"
        mine = [place for place, (record, _) in enumerate(candidates) if ("chosen" in record) == pairs]
        theirs = [place for place in mine if candidates[place][1] is None]
        if theirs:
            equal, alike = chats.duplicate_prompts(
                [as_chat(candidates[place][0]) for place in theirs],
                ngram=settings.ngram,
                permutations=settings.permutations,
                bands=settings.bands,
                threshold=settings.threshold,
            )
            account.prompts[data_set] = {
                "equal_prompts": sum(len(group) - 1 for group in equal),
                "alike_prompts": sum(len(group) - 1 for group in alike),
            }
            if settings.repeats == "drop-alike":
                gone.update(
                    {theirs[place]: "a prompt like one before" for group in alike for place in group[1:]}
                )
        if settings.repeats == "keep":
            continue
        before: set[str] = set()
        for place in mine:
            record = candidates[place][0]
            turns = as_chat(record)["messages"]
            key = record_key(record) if pairs else content_key(record_key({"messages": turns[:-1]}))
            if key in before:
                gone[place] = "a pair that was there before" if pairs else "a prompt that was there before"
            before.add(key)
    account.left_out.update(gone.values())
    return [candidate for place, candidate in enumerate(candidates) if place not in gone]


Placed = list[tuple[Record, str, bool]]  # record, split, whether it is the user's own


def _without_evaluation_data(placed: Placed, grams: Path | None, curate: Curate, account: Account) -> Placed:
    """The records without those of training that hold evaluation data."""
    if grams is None:
        return placed
    tables = Grams.load(grams)

    def turns(record: Record) -> list[tuple[str, str]]:
        found = [(turn["role"], turn["content"]) for turn in as_chat(record)["messages"]]
        return [*found, ("assistant", record["rejected"])] if "rejected" in record else found

    screen = Screen(
        tables, (turns(record) for record, split, _ in placed if split == "train"), curate.decontaminate
    )
    kept: Placed = []
    for record, split, own in placed:
        owner = screen.owner(turns(record)) if split == "train" else None
        if owner is None:
            kept.append((record, split, own))
        else:
            account.record_hits[tables.names[owner]] += 1
            account.left_out["holds evaluation data"] += 1
    return kept


def _settle(placed: Placed, curate: Curate, left_out: Counter[str]) -> Records:
    """Nothing held out stands in training as well; a fixed order; a limit.

    No prompt of a held-out split is one of training.  A held-out question on a document goes, too,
    where its answer stands in training word for word.  The user's own stay then: their rare long
    answers were kept together (:mod:`.prompts`), and what many share is meant to be known.
    """
    settled: Records = {split: [] for split in SPLITS}
    settled["train"] = [record for record, split, _ in placed if split == "train"]
    prompts = {known(asked(record)) for record in settled["train"]}
    answers = {answer_of(record) for record in settled["train"]}
    for record, split, own in placed:
        if split == "train":
            continue
        if known(asked(record)) in prompts:
            left_out["held-out prompt also in training"] += 1
        elif not own and answer_of(record) in answers:
            left_out["held-out answer also in training"] += 1
        else:
            settled[split].append(record)
    for split in SPLITS:
        settled[split].sort(key=lambda record: hashed("order", record_key(record)))
    if curate.max_pairs:
        left_out["beyond max_pairs"] += max(0, len(settled["train"]) - curate.max_pairs)
        settled["train"] = settled["train"][: curate.max_pairs]
    return settled
