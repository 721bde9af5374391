"""Blending by weight, with exact account of tokens.

Every document has a key, a hash of its id.  A source that is to give ``w`` of the tokens
gives its documents in the order of their keys until the budget is reached; repeating it is
giving them all once more.  So what is taken depends on the documents alone, and grows by
whole documents when the budget does.  The key at which a budget is reached is found from
the tokens by the keys' leading bits, so no list of all records is held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.schema import Curate, Source

WHOLE = 1 << 64
BINS = 16  # leading bits of a key by which tokens are counted


@dataclass
class Share:
    """What one source gives: ``copies`` whole copies, and once more the records up to ``limit``."""

    copies: int
    limit: int  # keys below it are given once more
    tokens: int = 0
    records: int = 0
    wanted: int = 0
    available: int = 0
    left_out: int = 0  # documents that are not given at all

    def report(self) -> dict[str, Any]:
        """As plain JSON."""
        epochs = self.tokens / self.available if self.available else 0.0
        return {
            "available_tokens": self.available,
            "wanted_tokens": self.wanted,
            "tokens": self.tokens,
            "records": self.records,
            "epochs": round(epochs, 4),
            "left_out": self.left_out,
        }


@dataclass
class Blend:
    """What every source gives to the training data."""

    shares: dict[int, Share] = field(default_factory=dict)

    def copies(self, keys: Any, origins: Any) -> Any:
        """How often each record is given."""
        found = np.ones(len(keys), dtype=np.int64)
        for origin, share in self.shares.items():
            mine = origins == origin
            found[mine] = share.copies + (keys[mine] < np.uint64(min(share.limit, WHOLE - 1)))
        return found

    def plain(self) -> dict[str, Any]:
        """For the workers."""
        return {str(origin): [share.copies, share.limit] for origin, share in self.shares.items()}


def weigh(folders: list[Path], data_set: str, curate: Curate) -> Blend:
    """The blend of a data set's training split.

    Without weights every record is given once.  Raises ``ValueError`` with a sentence for
    the user when the budget would repeat a source more than ``max_epochs`` allows.
    """
    counted = _Counted.of(folders, f"{data_set}.train")
    present, available = sorted(counted.tokens), counted.tokens
    weights = {origin: curate.sources[origin].weight for origin in present}
    if not present or any(weight is None for weight in weights.values()):
        return Blend(
            {
                origin: Share(1, 0, tokens, counted.records[origin], tokens, tokens)
                for origin, tokens in sorted(available.items())
            }
        )
    total_weight = sum(float(weight or 0) for weight in weights.values())
    part = {origin: float(weights[origin] or 0) / total_weight for origin in present}
    budget = float(curate.tokens) or min(available[origin] / part[origin] for origin in present)
    blend = Blend()
    for origin in present:
        wanted = round(budget * part[origin])
        if not available[origin]:
            raise ValueError(f"curate.sources.{origin} has no token to give to the blend")
        if wanted > available[origin] * curate.max_epochs * (1 + 1e-9):
            raise ValueError(
                f"curate.tokens: {_name(curate.sources[origin], origin)} would have to be repeated "
                f"{wanted / available[origin]:.2f} times to give {wanted:,} of {budget:,.0f} tokens; it has "
                f"{available[origin]:,}. Lower curate.tokens or its weight, or raise curate.max_epochs"
            )
        blend.shares[origin] = counted.share(origin, wanted)
    return blend


@dataclass
class _Counted:
    """What the sources have: documents, records and tokens, and the tokens by the keys' leading bits."""

    folders: list[Path]
    name: str
    documents: dict[int, int] = field(default_factory=dict)
    records: dict[int, int] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)
    bins: dict[int, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folders: list[Path], name: str) -> _Counted:
        counted = cls(folders, name)
        for keys, tokens, origins, heads in counted._columns():
            for origin in np.unique(origins).tolist():
                mine = origins == origin
                counted.documents[origin] = counted.documents.get(origin, 0) + int(heads[mine].sum())
                counted.records[origin] = counted.records.get(origin, 0) + int(mine.sum())
                counted.tokens[origin] = counted.tokens.get(origin, 0) + int(tokens[mine].sum())
                bins = counted.bins.setdefault(origin, np.zeros(1 << BINS, dtype=np.int64))
                np.add.at(bins, (keys[mine] >> np.uint64(64 - BINS)).astype(np.int64), tokens[mine])
        return counted

    def share(self, origin: int, wanted: int) -> Share:
        """The whole copies and the limit of keys that give at most ``wanted`` tokens."""
        copies, rest = divmod(wanted, self.tokens[origin])
        reached = np.cumsum(self.bins[origin])
        bin_of_limit = int(np.searchsorted(reached, rest, side="right"))
        given = int(reached[bin_of_limit - 1]) if bin_of_limit else 0
        below, heads_below, keys, tokens, heads = self._bin(origin, bin_of_limit)
        total = given + np.cumsum(tokens)
        # The document that reaches the budget is left out: never more than what was asked for.
        taken = int(np.searchsorted(total, rest, side="right"))
        limit = int(keys[taken]) if taken < len(keys) else WHOLE
        more = int(np.searchsorted(keys, np.uint64(limit))) if limit < WHOLE else len(keys)
        return Share(
            copies,
            limit,
            copies * self.tokens[origin] + (int(total[more - 1]) if more else given),
            copies * self.records[origin] + below + more,
            wanted,
            self.tokens[origin],
            0 if copies else self.documents[origin] - heads_below - int(heads[:more].sum()),
        )

    def _bin(self, origin: int, wanted: int) -> tuple[int, int, Any, Any, Any]:
        """(records, documents below a bin; its keys in order, their tokens, which are first pieces)."""
        below = heads_below = 0
        found = []
        for keys, tokens, origins, heads in self._columns():
            bins = (keys >> np.uint64(64 - BINS)).astype(np.int64)
            mine = origins == origin
            below += int((bins[mine] < wanted).sum())
            heads_below += int(heads[mine & (bins < wanted)].sum())
            found.append(tuple(column[mine & (bins == wanted)] for column in (keys, tokens, heads)))
        keys, tokens, heads = (np.concatenate(each) for each in zip(*found, strict=True))
        order = np.argsort(keys, kind="stable")
        return below, heads_below, keys[order], tokens[order], heads[order]

    def _columns(self) -> Iterator[tuple[Any, Any, Any, Any]]:
        for folder in self.folders:
            path = folder / f"{self.name}.npz"
            if path.exists():
                with np.load(path, allow_pickle=False) as kept:
                    yield kept["keys"], kept["tokens"], kept["origins"], kept["heads"]


def bytes_of(folders: list[Path], name: str, blend: Blend | None) -> int:
    """Bytes of a split's records, each as often as the blend gives it."""
    total = 0
    for folder in folders:
        path = folder / f"{name}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as kept:
                lengths = np.diff(kept["begins"])
                times = 1 if blend is None else blend.copies(kept["keys"], kept["origins"])
                total += int((lengths * times).sum())
    return total


def left_out(folders: list[Path], blends: dict[str, Blend]) -> Iterator[tuple[int, bytes]]:
    """(origin, line) of the documents that a blend does not give at all."""
    for name, blend in blends.items():
        for folder in folders:
            if not (folder / f"{name}.npz").exists():
                continue
            with np.load(folder / f"{name}.npz", allow_pickle=False) as kept:
                unused = np.flatnonzero((blend.copies(kept["keys"], kept["origins"]) == 0) & kept["heads"])
                begins, origins = kept["begins"], kept["origins"]
            if len(unused):
                with open(folder / f"{name}.jsonl", "rb") as handle:
                    for place in unused.tolist():
                        handle.seek(int(begins[place]))
                        yield int(origins[place]), handle.read(int(begins[place + 1] - begins[place]))


def records(folders: list[Path], name: str, blend: Blend | None) -> int:
    """How many records a data set's split gets."""
    if blend is not None:
        return sum(share.records for share in blend.shares.values())
    total = 0
    for folder in folders:
        if (folder / f"{name}.npz").exists():
            with np.load(folder / f"{name}.npz", allow_pickle=False) as kept:
                total += len(kept["keys"])
    return total


def data_sets(folders: list[Path]) -> list[str]:
    """The data sets and splits that the last pass wrote, e.g. ``pretrain.train``."""
    return sorted({path.stem for folder in folders for path in folder.glob("*.npz")})


def _name(source: Source, index: int) -> str:
    return source.name or f"curate.sources.{index}"
