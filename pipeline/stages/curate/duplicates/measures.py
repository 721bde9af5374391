"""What workers measure of every document for the comparison of all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.stages.curate.duplicates.minhash import folded, signature_rows

KEY_BYTES = 16  # of a SHA-256: two of a thousand million documents meet with a chance below 1e-20


@dataclass(frozen=True)
class Standing:
    """What the choice of the one that stays goes by: number, length and score."""

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """``numbers`` (int64), ``lengths`` (characters, int64), ``scores`` (float64, NaN: none)."""
        return {
            "numbers": np.array([row["number"] for row in rows], dtype=np.int64),
            "lengths": np.array([len(row["text"]) for row in rows], dtype=np.int64),
            "scores": np.array([row.get("score", np.nan) for row in rows], dtype=np.float64),
        }


@dataclass(frozen=True)
class ContentKeys:
    """Digests of the texts, for exact duplicates."""

    fold: bool

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """``keys``: ``uint64 [documents, 2]``."""
        digests = b"".join(
            hashlib.sha256(folded(row["text"], self.fold)).digest()[:KEY_BYTES] for row in rows
        )
        return {"keys": np.frombuffer(digests, dtype=np.uint64).reshape(len(rows), 2)}


@dataclass(frozen=True)
class Signatures:
    """MinHash signatures of the texts, or of what ``view`` makes of them."""

    name: str
    ngram: int
    permutations: int
    view: Callable[[str], str] | None = None
    marks: bool = True  # whether punctuation counts

    def columns(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """``uint32 [documents, permutations]`` under the measure's name."""
        texts = [row["text"] if self.view is None else self.view(row["text"]) for row in rows]
        return {self.name: signature_rows(texts, self.ngram, self.permutations, self.marks)}
