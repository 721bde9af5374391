"""Which side of the split a conversation belongs to, over all of the user's files at once.

Instructions, preferences, scored answers and the pairs made of documents share one assignment:
prompts that are equal or alike stand on one side, whatever file they come from and whatever
system turn is in front.  Pairs of documents are where their document is and take the user's alike
prompts with them; all other groups go by the hash of their content (:func:`.split.held_out`).

Answers count too.  A long answer that one or two prompts have (:data:`CANONICAL`, :data:`LONG`)
gives a held-out prompt away when training has it, so such prompts stay together.  An answer that
three prompts and more share is what a support desk's or a classifier's data look like: it is
meant to be learnt, and parts nobody.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.schema import Curate, NearDuplicates
from pipeline.stages.curate.chats import comparable
from pipeline.stages.curate.duplicates.bands import similar_pairs
from pipeline.stages.curate.duplicates.clusters import Clusters
from pipeline.stages.curate.duplicates.minhash import folded, signatures
from pipeline.stages.curate.split import SPLITS, content_hash, held_out
from pipeline.stages.curate.user_data import as_chat

CANONICAL = 3  # prompts with one answer from which it is a canonical one
LONG = 13  # words of an answer that can give a prompt away, as n-grams of evaluation data do
TELLING = 5  # words of a single turn by which a conversation is known
LEVELS = (0.0, 0.8, 1.01)  # least likeness that joins; the next where one group would be most of the data
MOST = 0.5

Record = dict[str, Any]


@dataclass
class Sides:
    """The split of every record, and what a person should know of it."""

    splits: list[str]
    notes: list[str] = field(default_factory=list)


def answer_of(record: Record) -> str:
    """The answer that is learnt."""
    return str(record["chosen"] if "chosen" in record else record["messages"][-1]["content"])


def asked(record: Record) -> str:
    """Everything before the answer but the system turn, as text."""
    turns = as_chat(record)["messages"][:-1]
    return "\n".join(turn["content"] for turn in turns if turn["role"] != "system")


def record_key(record: Record) -> str:
    """A record's content in one line: what chance goes by, so that no id or line number does."""
    turns = as_chat(record)["messages"]
    return "\0".join(
        [*(f"{turn['role']}:{turn['content']}" for turn in turns), str(record.get("rejected", ""))]
    )


def known(text: str) -> str:
    """A text without the marks at its ends; case and white space are folded."""
    return re.sub(r"^\W+|\W+$", "", folded(text, True).decode("utf-8")) or text


def sides(records: list[Record], fixed: list[str | None], curate: Curate) -> Sides:
    """The split of each record; ``fixed`` are those of records that have theirs already."""
    if all(split is not None for split in fixed):
        return Sides([str(split) for split in fixed])
    prompts = [known(asked(record)) for record in records]
    equal = _equal(records, prompts)
    one, two, likeness = _alike(prompts, fixed, curate)
    free = np.array([split is None for split in fixed])
    notes: list[str] = []
    for number, level in enumerate(LEVELS):
        labels = _joined(len(records), [*equal, *_at_least(one, two, likeness, level, free)])
        largest = int(np.bincount(labels[free], minlength=1).max())
        distinct = len({prompts[place] for place in np.flatnonzero(free)})
        if number == len(LEVELS) - 1 or largest <= max(1, MOST * free.sum()) or distinct < CANONICAL:
            break
        notes.append(
            f"{largest:,} of {int(free.sum()):,} prompts of the user's data are alike in a chain; so that something can "
            f"be held out, only prompts {'that are equal' if LEVELS[number + 1] > 1 else 'alike to 0.8'} stay together"
        )
    notes = notes[-1:]
    splits = _given(labels, fixed, one, two, likeness)
    rest = np.array([split is None for split in splits])
    if rest.any():
        contents = np.array([content_hash(prompt) for prompt in prompts], dtype=np.uint64)
        leaders, group = np.unique(labels[rest], return_inverse=True)
        names = np.full(len(leaders), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(names, group, contents[rest])
        sizes = np.bincount(group, minlength=len(leaders))
        pairs = np.array(["chosen" in record for record in records])[rest]
        parts = [np.bincount(group[mask], minlength=len(leaders)) > 0 for mask in (~pairs, pairs)]
        chosen = held_out(names, sizes, curate.validation_share, curate.test_share, parts)[group]
        for place, split in zip(np.flatnonzero(rest).tolist(), chosen.tolist(), strict=True):
            splits[place] = SPLITS[split]
    return Sides([str(split) for split in splits], notes)


def _equal(records: list[Record], prompts: list[str]) -> list[tuple[int, int]]:
    """Pairs of records that share a prompt, a telling turn, or a long answer that few have."""
    first: dict[str, int] = {}
    joined: list[tuple[int, int]] = []
    answers: dict[str, dict[str, int]] = defaultdict(dict)
    for place, (record, prompt) in enumerate(zip(records, prompts, strict=True)):
        turns = [known(turn["content"]) for turn in as_chat(record)["messages"] if turn["role"] == "user"]
        for text in {prompt, *(turn for turn in turns if len(turn.split()) >= TELLING)}:
            joined.append((first.setdefault(text, place), place))
        answer = known(answer_of(record))
        if len(answer.split()) >= LONG:
            answers[answer].setdefault(prompt, place)
    for asking in answers.values():
        if 1 < len(asking) < CANONICAL:
            places = list(asking.values())
            joined += [(places[0], place) for place in places[1:]]
    return joined


def _alike(prompts: list[str], fixed: list[str | None], curate: Curate) -> tuple[Any, Any, Any]:
    """Alike prompts of which one at least is the user's, and how alike they are."""
    settings = curate.prompts
    near = NearDuplicates(
        ngram=settings.ngram,
        permutations=settings.permutations,
        bands=settings.bands,
        threshold=settings.threshold,
    )
    # The user's own first: of a bucket each is compared with the first few.
    order = sorted(
        {
            prompt: (fixed[place] is not None, place) for place, prompt in reversed(list(enumerate(prompts)))
        }.values()
    )
    places = np.array([place for _, place in order], dtype=np.int64)
    texts = [comparable(prompts[place]) for place in places.tolist()]
    words = np.array([re.search(r"\w", text) is not None for text in texts])
    mine = np.array([fixed[place] is None for place in places.tolist()])
    rows = signatures(texts, near, 1, marks=False)
    found = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))]
    for one, two, share in similar_pairs(rows, near.bands, near.threshold, curate.memory_mb):
        kept = words[one] & words[two] & (mine[one] | mine[two])
        found.append((places[one[kept]], places[two[kept]], share[kept]))
    one, two, share = (np.concatenate(column) for column in zip(*found, strict=True))
    return one, two, share


def _at_least(one: Any, two: Any, likeness: Any, level: float, free: Any) -> list[tuple[int, int]]:
    """Pairs of the user's own prompts that are so alike."""
    chosen = (likeness >= level) & free[one] & free[two]
    return list(zip(one[chosen].tolist(), two[chosen].tolist(), strict=True))


def _joined(count: int, pairs: list[tuple[int, int]]) -> Any:
    clusters = Clusters(count)
    if pairs:
        ends = np.array(pairs, dtype=np.int64)
        clusters.join(ends[:, 0], ends[:, 1])
    return clusters.labels()


def _given(labels: Any, fixed: list[str | None], one: Any, two: Any, likeness: Any) -> list[str | None]:
    """The splits that records have, or get from a group that one with a split belongs or is most alike to.

    Training goes before the others where a group holds records of several.
    """
    held: dict[int, str] = {}
    for place, split in enumerate(fixed):
        if split is not None:
            label = int(labels[place])
            held[label] = min(held.get(label, split), split, key=SPLITS.index)
    nearest: dict[int, tuple[float, int]] = {}
    for a, b, share in zip(one.tolist(), two.tolist(), likeness.tolist(), strict=True):
        mine, other = (a, b) if fixed[a] is None else (b, a)
        if fixed[other] is not None:
            best = (float(share), -SPLITS.index(str(fixed[other])))
            label = int(labels[mine])
            nearest[label] = max(nearest.get(label, best), best)
    for label, (_, place) in nearest.items():
        held.setdefault(label, SPLITS[-place])
    return [held.get(int(labels[place])) if split is None else split for place, split in enumerate(fixed)]
