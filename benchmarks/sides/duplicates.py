"""Near-duplicates found among planted ones, by edit rate, beside datasketch; truth is exact Jaccard.

    .venvs/core/bin/python -m benchmarks.sides.duplicates

Every original is copied once for each rate, with that share of its words exchanged.  Both
sides have the same shingles, signature length and bands, and both compare the signatures
of candidates with the threshold.  Prints one JSON object.
"""

from __future__ import annotations

import json
import random

import numpy as np
from datasketch import MinHash, MinHashLSH

from pipeline.schema import NearDuplicates
from pipeline.stages.curate.duplicates import shingles
from pipeline.stages.curate.duplicates.bands import similar_pairs
from pipeline.stages.curate.duplicates.minhash import signature_rows
from pipeline.stages.curate.harvest import package_sources, read_docstrings

RATES = (0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
ORIGINALS = 600
NEAR = NearDuplicates()


def edited(text: str, rate: float, seed: int) -> str:
    """The text with a share of its words exchanged for others."""
    chance = random.Random(seed)
    words = (f"edit{chance.randrange(10**6)}" if chance.random() < rate else word for word in text.split())
    return " ".join(words)


def ours(corpus: list[str]) -> set[tuple[int, int]]:
    """Pairs by this project's signatures and bands."""
    rows = signature_rows(corpus, NEAR.ngram, NEAR.permutations)
    found: set[tuple[int, int]] = set()
    for one, two, _ in similar_pairs(rows, NEAR.bands, NEAR.threshold, memory_mb=256):
        found.update(zip(one.tolist(), two.tolist(), strict=True))
    return found


def datasketch(corpus: list[str]) -> set[tuple[int, int]]:
    """Pairs by datasketch's MinHash and LSH."""
    index = MinHashLSH(
        num_perm=NEAR.permutations, params=(NEAR.bands, NEAR.permutations // NEAR.bands), threshold=0.5
    )
    sketches = []
    for number, text in enumerate(corpus):
        sketch = MinHash(num_perm=NEAR.permutations, seed=1)
        sketch.update_batch([shingle.encode() for shingle in shingles(text, NEAR.ngram)])
        sketches.append(sketch)
        index.insert(number, sketch)
    return {
        (min(number, other), max(number, other))
        for number, sketch in enumerate(sketches)
        for other in index.query(sketch)
        if other != number and sketch.jaccard(sketches[other]) >= NEAR.threshold
    }


def main() -> None:
    """Plant, find, and count by rate."""
    found = [
        d["text"]
        for name in ("networkx", "sympy")
        for m, f in package_sources(name)
        for d in read_docstrings(m, f, name)
    ]
    originals = [text for text in dict.fromkeys(found) if len(text.split()) > 60][:ORIGINALS]
    corpus, plan = list(originals), []
    for rate in RATES:
        for number, text in enumerate(originals):
            plan.append((rate, number, len(corpus)))
            corpus.append(edited(text, rate, number))
    sets = [set(shingles(text, NEAR.ngram)) for text in corpus]

    def jaccard(one: int, two: int) -> float:
        return len(sets[one] & sets[two]) / len(sets[one] | sets[two])

    pairs = {"ours": ours(corpus), "datasketch": datasketch(corpus)}
    rows = []
    for rate in RATES:
        planted = [(one, two, jaccard(one, two)) for each, one, two in plan if each == rate]
        alike = [(one, two) for one, two, likeness in planted if likeness >= NEAR.threshold]
        other = [(one, two) for one, two, likeness in planted if likeness < NEAR.threshold]
        row: dict[str, object] = {
            "rate": rate, "likeness": float(np.mean([likeness for *_, likeness in planted])),
            "alike": len(alike), "unlike": len(other),
        }  # fmt: skip
        for side, which in pairs.items():
            row[side] = [sum(p in which for p in alike), sum(p in which for p in other)]
        rows.append(row)
    precision = {
        side: [len(which), *(sum(jaccard(*p) >= NEAR.threshold - slack for p in which) for slack in (0, 0.1))]
        for side, which in pairs.items()
    }
    print(json.dumps({"rows": rows, "precision": precision, "threshold": NEAR.threshold}))


if __name__ == "__main__":
    main()
