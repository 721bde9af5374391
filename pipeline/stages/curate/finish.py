"""The last pass: each shard's documents as training records, sorted for the shuffle.

A worker takes evaluation data out of the training documents, gives each record its header,
counts its tokens, and writes the records of every data set and split sorted by a key that
is a hash of the document's content::

    00012/
      pretrain.train.jsonl   records in the order of their keys
      pretrain.train.npz     keys, tokens, origins, heads, and where each record begins
      pairs.train.jsonl      instruction pairs that the documents give
      counts.json  dropped.jsonl
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from nemo_curator.backends.base import WorkerMetadata

from pipeline.conversations.tokenizer import ChatTokenizer
from pipeline.schema import Curate
from pipeline.stages.curate.decontaminate import Grams, clean
from pipeline.stages.curate.pairs import candidates
from pipeline.stages.curate.shards import (
    COUNTS,
    DOCUMENTS,
    DROPPED,
    FolderWork,
    bucket,
    counts_of,
    dumps,
    read_rows,
    write_rows,
)
from pipeline.stages.curate.split import SPLITS, TRAIN, keys_file
from pipeline.stages.curate.text_stages import Ledger
from pipeline.stages.curate.tokens import pieces

BATCH_CHARACTERS = 1 << 17  # encoded at once


@dataclass(frozen=True)
class Record:
    """A training record: ``key`` is its document's, so that its pieces share one fate; ``head`` is the first."""

    row: dict[str, Any]
    origin: int
    key: int
    head: bool


def with_header(name: str, text: str, max_characters: int) -> str:
    """A pre-training document: its name on a line of its own, then its text, cut at a word."""
    return f"# {name}\n{cut(text, max_characters)}" if name else cut(text, max_characters)


def cut(text: str, max_characters: int) -> str:
    """The text up to the last whole word within ``max_characters`` (0: all of it)."""
    if not max_characters or len(text) <= max_characters:
        return text
    words = text[:max_characters].rsplit(None, 1)
    return words[0] if words else text[:max_characters]


def cut_away(pieces: list[str], max_characters: int) -> dict[str, int]:
    """What :func:`cut` takes of a document: whether any, how many characters, and of how many."""
    whole = sum(map(len, pieces))
    left = sum(len(cut(piece, max_characters)) for piece in pieces)
    return {"documents": int(left < whole), "characters": whole - left, "of_characters": whole}


class GramCount(FolderWork):
    """How often each n-gram of evaluation data stands in a shard's training documents."""

    def __init__(self, grams: Path, splits: Path) -> None:
        self.name = "count n-grams"
        self.grams, self.splits = str(grams), str(splits)

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the n-grams."""
        self._grams = Grams.load(Path(self.grams))

    def make(self, sources: list[str], part: Path) -> None:
        """``sources``: the shard, and the place of its first document."""
        shard, start = Path(sources[0]), int(sources[1])
        splits = np.load(self.splits, mmap_mode="r", allow_pickle=False)
        counts: Counter[int] = Counter()
        for place, row in enumerate(read_rows(shard / DOCUMENTS), start=start):
            if splits[place] == TRAIN:
                counts.update(found for _, _, found, _ in self._grams.matches(row["text"]))
        hashes = np.array(sorted(counts), dtype=np.uint64)
        np.savez(
            part / "hits.npz",
            hashes=hashes,
            counts=np.array([counts[int(h)] for h in hashes], dtype=np.int64),
        )


class Finish(FolderWork):
    """See the module's docstring."""

    def __init__(
        self, curate: Curate, splits: Path, tokenizer: Path, grams: Path | None, *, own_tokenizer: bool
    ) -> None:
        self.name = "finish"
        self.own_tokenizer = own_tokenizer  # trained here, not a base model's
        self.curate = curate
        self.splits, self.tokenizer = str(splits), str(tokenizer)
        self.grams = None if grams is None else str(grams)

    def setup(self, worker_metadata: WorkerMetadata | None = None) -> None:
        """Load the tokenizer and the n-grams of evaluation data."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the workers are the parallelism
        self._tokenizer = ChatTokenizer.of_folder(Path(self.tokenizer))
        self._grams = None if self.grams is None else Grams.load(Path(self.grams))

    def make(self, sources: list[str], part: Path) -> None:
        """``sources``: the shard, and the place of its first document."""
        shard, start = Path(sources[0]), int(sources[1])
        splits = np.load(self.splits, mmap_mode="r", allow_pickle=False)
        keys = np.load(keys_file(Path(self.splits)), mmap_mode="r", allow_pickle=False)
        ledger = Ledger(keep_rows=self.curate.keep_dropped)
        sets: dict[str, list[Record]] = {}
        pairs: dict[str, list[list[dict[str, Any]]]] = {}
        left_out: Counter[str] = Counter()
        languages: Counter[str] = Counter()
        origins: Counter[str] = Counter()
        characters: Counter[str] = Counter()
        cuts: Counter[str] = Counter()
        kept = extra = 0
        for place, row in enumerate(read_rows(shard / DOCUMENTS), start=start):
            split = SPLITS[splits[place]]
            pieces = self._pieces(row, split, ledger)
            if not pieces:
                continue
            kept += 1
            extra += len(pieces) - 1
            languages[row.get("language", "unknown")] += 1
            characters[str(bucket(len(row["text"])))] += 1
            origins[str(row["origin"])] += 1
            cuts.update(cut_away(pieces, self.curate.max_characters))
            for number, text in enumerate(pieces):
                identifier = row["id"] if number == 0 else f"{row['id']}#{number + 1}"
                record = {
                    "id": identifier,
                    "text": with_header(row["name"], text, self.curate.max_characters),
                    "name": row["name"],
                    "source": row["source"],
                }
                if "language" in row:
                    record["language"] = row["language"]
                sets.setdefault(f"{self._set_of(row)}.{split}", []).append(
                    Record(record, row["origin"], int(keys[place]), number == 0)
                )
            if self.curate.pairs and pieces == [row["text"]]:
                own, reason = candidates(row)
                if reason is None:
                    pairs.setdefault(split, []).append(own)
                else:
                    left_out[reason] += 1
        tokens: Counter[str] = Counter()
        totals = {name: self._write_set(part, name, records, tokens) for name, records in sets.items()}
        for split, each in pairs.items():
            write_rows(part / f"pairs.{split}.jsonl", ({"pairs": own} for own in each))
        counts = {
            **counts_of(ledger, kept),
            "pieces": extra,
            "cut": cuts,
            "languages": languages,
            "characters": characters,
            "left_out": left_out,
            "token_lengths": tokens,
            "tokens": totals,
            "origins": origins,
        }
        (part / COUNTS).write_bytes(orjson.dumps(counts, option=orjson.OPT_SORT_KEYS))
        write_rows(part / DROPPED, ledger.rows)

    def _pieces(self, row: dict[str, Any], split: str, ledger: Ledger) -> list[str]:
        if self._grams is None or split != "train":
            return [str(row["text"])]
        if any(self._grams.matches(row["name"])):
            row["name"] = ""  # it would stand above every piece
        cleaned = clean(row["text"], self._grams, self.curate.decontaminate)
        for owner in cleaned.owners:
            ledger.found["decontaminate", self._grams.names[owner]] += 1
        if cleaned.reason is not None:
            ledger.drop("decontaminate", cleaned.reason, row)
        elif cleaned.owners:
            ledger.changed["decontaminate"] += 1
        return cleaned.pieces

    def _set_of(self, row: dict[str, Any]) -> str:
        language = row.get("language")
        return f"pretrain-{language}" if language in self.curate.language.route else "pretrain"

    def _write_set(self, part: Path, name: str, records: list[Record], lengths: Counter[str]) -> int:
        """Write the records in the order of their keys; returns their tokens."""
        tokens = self._token_counts([each.row["text"] for each in records])
        lengths.update(str(bucket(count)) for count in tokens.tolist())
        keys = np.array([each.key for each in records], dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        begins = [0]
        with open(part / f"{name}.jsonl", "wb") as handle:
            for place in order.tolist():
                begins.append(begins[-1] + handle.write(dumps(records[place].row)))
        np.savez(
            part / f"{name}.npz",
            keys=keys[order],
            tokens=tokens[order],
            origins=np.array([each.origin for each in records], dtype=np.int32)[order],
            heads=np.array([each.head for each in records], dtype=bool)[order],
            begins=np.array(begins, dtype=np.int64),
        )
        return int(tokens.sum())

    def _token_counts(self, texts: list[str]) -> Any:
        """Tokens of each text; an encoding takes some hundred times its text, so little at a time."""
        counts = np.zeros(len(texts), dtype=np.int64)
        batch: list[tuple[int, str]] = []
        size = 0
        for place, text in enumerate(texts):
            for piece in pieces(text) if self.own_tokenizer else [text]:
                batch.append((place, piece))
                size += len(piece)
                if size >= BATCH_CHARACTERS:
                    self._count(batch, counts)
                    batch, size = [], 0
        self._count(batch, counts)
        return counts

    def _count(self, batch: list[tuple[int, str]], counts: Any) -> None:
        encoded = self._tokenizer.texts([text for _, text in batch])
        for (place, _), ids in zip(batch, encoded, strict=True):
            counts[place] += len(ids)
