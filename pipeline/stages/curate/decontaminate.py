"""Decontamination: evaluation data out of the training documents, by n-gram overlap.

The rule is that of NeMo Curator 0.x and Megatron-LM before it (after Brown et al. 2020,
appendix C): an entry of an evaluation set gives its n-grams (a shorter one itself, down to
``min_ngram`` words); an n-gram met more often than ``max_frequency`` times in the training
documents is common language and forgotten; a document is cut around every other match,
with ``remove_characters`` on either side up to the end of a sentence; pieces that are too
short are dropped, and documents that would fall into too many.

N-grams are kept as 64-bit hashes of their words, sorted, so that looking up all of a
document's is one call of NumPy.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schema import Decontaminate
from pipeline.stages.curate.words import WORD

SENTENCE_ENDS = ".!?\n"
BASE = np.uint64(0xD6E8FEB86659FD93)
LEAST_WORDS = 2  # of an entry that a prompt can be word for word: less says nothing
REMEMBERED = 1 << 20  # words whose hashes are kept
_hashes: dict[str, int] = {}


@dataclass
class Grams:
    """N-grams of evaluation sets by their length: sorted hashes, and the set each comes from."""

    names: list[str]
    tables: dict[int, tuple[Any, Any]]
    short: list[int]  # entries of each set with fewer than ``min_ngram`` words
    entries: tuple[Any, Any]  # sorted hashes of whole entries, and the set each comes from

    @classmethod
    def of(cls, sets: Iterable[tuple[str, Iterable[str]]], settings: Decontaminate) -> Grams:
        """From (name of the set, texts) pairs."""
        names: list[str] = []
        short: list[int] = []
        found: dict[int, list[tuple[Any, int]]] = {}
        whole: dict[int, int] = {}
        for owner, (name, texts) in enumerate(sets):
            names.append(name)
            short.append(0)
            for text in texts:
                hashes, _ = word_hashes(text)
                if len(hashes) >= LEAST_WORDS:
                    whole.setdefault(entry_hash(text), owner)
                length = min(settings.ngram, len(hashes))
                if length >= min(settings.min_ngram, settings.ngram):
                    found.setdefault(length, []).append((gram_hashes(hashes, length), owner))
                else:
                    short[owner] += 1
        tables = {}
        for length, parts in sorted(found.items()):
            grams = np.concatenate([grams for grams, _ in parts])
            owners = np.concatenate([np.full(len(grams), owner, dtype=np.int32) for grams, owner in parts])
            unique, first = np.unique(grams, return_index=True)
            tables[length] = unique, owners[first]
        entries = sorted(whole.items())
        return cls(names, tables, short, _columns(entries))

    def without(self, common: Any) -> Grams:
        """Those left when the given hashes are forgotten."""
        tables = {}
        for length, (grams, owners) in self.tables.items():
            kept = ~np.isin(grams, common)
            if kept.any():
                tables[length] = grams[kept], owners[kept]
        return Grams(self.names, tables, self.short, self.entries)

    def sizes(self) -> Counter[str]:
        """N-grams by the set that they come from."""
        counts: Counter[str] = Counter()
        for _, owners in self.tables.values():
            for owner, count in zip(*np.unique(owners, return_counts=True), strict=True):
                counts[self.names[owner]] += int(count)
        return counts

    def save(self, path: Path) -> None:
        """Write to an ``.npz`` file."""
        arrays = {"entries": self.entries[0], "entry_owners": self.entries[1]}
        for length, (grams, owners) in self.tables.items():
            arrays[f"grams{length}"], arrays[f"owners{length}"] = grams, owners
        np.savez(path, names=np.array(self.names, dtype=np.str_), short=np.array(self.short), **arrays)

    @classmethod
    def load(cls, path: Path) -> Grams:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as kept:
            lengths = sorted(int(name[5:]) for name in kept if name.startswith("grams"))
            tables = {length: (kept[f"grams{length}"], kept[f"owners{length}"]) for length in lengths}
            entries = kept["entries"], kept["entry_owners"]
            return cls([str(name) for name in kept["names"]], tables, kept["short"].tolist(), entries)

    def matches(self, text: str) -> Iterator[tuple[int, int, int, int]]:
        """(start, end, hash, owner) of every match in a text, ``text[start:end]``."""
        hashes, spans = word_hashes(text)
        for length, (grams, owners) in self.tables.items():
            if len(hashes) < length:
                continue
            own = gram_hashes(hashes, length)
            place = np.searchsorted(grams, own)
            place[place == len(grams)] = 0
            for at in np.flatnonzero(grams[place] == own).tolist():
                yield spans[at][0], spans[at + length - 1][1], int(own[at]), int(owners[place[at]])

    def entry(self, text: str) -> int | None:
        """The set that has this text as a whole entry; case, white space and the marks at its ends are folded."""
        hashes, owners = self.entries
        place = int(np.searchsorted(hashes, np.uint64(entry_hash(text)))) if len(hashes) else 0
        found = place < len(hashes) and int(hashes[place]) == entry_hash(text)
        return int(owners[place]) if found else None


def entry_hash(text: str) -> int:
    """64 bits of a whole text."""
    folded = re.sub(r"^\W+|\W+$", "", " ".join(text.lower().split()))
    return int.from_bytes(
        hashlib.blake2b(folded.encode("utf-8", "replace"), digest_size=8).digest(), "little"
    )


def _columns(entries: list[tuple[int, int]]) -> tuple[Any, Any]:
    return (
        np.array([value for value, _ in entries], dtype=np.uint64),
        np.array([owner for _, owner in entries], dtype=np.int32),
    )


def word_hashes(text: str) -> tuple[Any, list[tuple[int, int]]]:
    """A 64-bit hash of each lower-case word, and where the words stand."""
    spans, hashes = [], []
    for match in WORD.finditer(text):
        word = match.group().lower()
        value = _hashes.get(word)
        if value is None:
            if len(_hashes) >= REMEMBERED:
                _hashes.clear()
            digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
            value = _hashes[word] = int.from_bytes(digest, "little")
        spans.append(match.span())
        hashes.append(value)
    return np.array(hashes, dtype=np.uint64), spans


def gram_hashes(hashes: Any, length: int) -> Any:
    """Hashes of all runs of ``length`` words (a polynomial in their hashes)."""
    count = len(hashes) - length + 1
    total = np.zeros(count, dtype=np.uint64)
    for offset in range(length):
        total = total * BASE + hashes[offset : offset + count]
    return total


@dataclass
class Cleaned:
    """A document after decontamination: its pieces, or why there are none; sets that were hit."""

    pieces: list[str]
    reason: str | None
    owners: set[int]


def clean(text: str, grams: Grams, settings: Decontaminate) -> Cleaned:
    """Cut a document around the matches."""
    found = sorted(grams.matches(text))
    if not found:
        return Cleaned([text], None, set())
    owners = {owner for _, _, _, owner in found}
    # Matches that overlap or lie within each other's margin are cut out as one.
    holes: list[list[int]] = []
    for start, end, _, _ in found:
        low, high = start - settings.remove_characters, end + settings.remove_characters
        if holes and low <= holes[-1][1]:
            holes[-1][1] = max(holes[-1][1], high)
        else:
            holes.append([low, high])
    if len(holes) > settings.max_splits:
        return Cleaned([], f"more than {settings.max_splits} matches with evaluation data", owners)
    pieces, at = [], 0
    for low, high in holes:
        pieces.append(text[at : _back(text, low)] if low > at else "")
        at = _forth(text, high)
    pieces.append(text[at:])
    kept = [piece.strip() for piece in pieces if len(piece.strip()) >= settings.min_characters]
    return Cleaned(kept, None if kept else "too little is left beside evaluation data", owners)


def _back(text: str, place: int) -> int:
    """The end of the last sentence before a place."""
    while place > 0 and text[place - 1] not in SENTENCE_ENDS:
        place -= 1
    return place


def _forth(text: str, place: int) -> int:
    """The beginning of the first sentence after a place."""
    place = min(place, len(text))
    while place < len(text) and text[place] not in SENTENCE_ENDS:
        place += 1
    return min(place + 1, len(text))


class Screen:
    """Evaluation data in chats and pairs: ``turns`` are (role, text), the rejected answer's among them.

    As in documents, an n-gram that more than ``max_frequency`` different prompts hold is common language
    (the frame that a data set puts around its questions), and so is a system turn that many share.
    """

    def __init__(
        self, grams: Grams, records: Iterable[list[tuple[str, str]]], settings: Decontaminate
    ) -> None:
        self._grams, self._systems = grams, Counter[str]()
        seen: set[str] = set()
        counts: Counter[int] = Counter()
        for turns in records:
            texts = {text for role, text in turns if role != "system"} - seen
            counts.update({found for text in texts for _, _, found, _ in grams.matches(text)})
            seen |= texts
            self._systems.update(text for role, text in turns if role == "system")
        self._most = settings.max_frequency
        self._common = {found for found, count in counts.items() if count > self._most}

    def owner(self, turns: list[tuple[str, str]]) -> int | None:
        """The evaluation set that a record gives away, if any."""
        for role, text in turns:
            if role == "system" and self._systems[text] > self._most:
                continue
            owner = self._grams.entry(text) if role == "user" else None
            if owner is not None:
                return owner
            for _, _, found, owner in self._grams.matches(text):
                if found not in self._common:
                    return owner
        return None
