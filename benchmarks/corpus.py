"""The benchmark's corpus: documentation strings, repeated with edits.

    python -m benchmarks.corpus FOLDER --documents 100000

Runs in the core toolchain.  Writes shards of 4,000 documents (``{"id", "text"}``) and
a file ``FOLDER.truth`` with the original and the edit rate of each.  Every copy has a share of its
words replaced, left out or doubled: 0, 2, 5, 10 or 30%, by the hash of its number, so the
same packages make the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from pathlib import Path

import yaml

from pipeline.stages.curate.harvest import package_sources, read_docstrings
from pipeline.toolchains import ROOT

RATES = (0.0, 0.02, 0.05, 0.10, 0.30)
SHARD = 4000


def originals() -> list[str]:
    """The documents of the preset ``documentation``, as they are."""
    preset = yaml.safe_load((ROOT / "configs" / "curate" / "documentation.yaml").read_text(encoding="utf-8"))
    found = []
    for package in preset["sources"][0]["packages"]:
        for module, file in package_sources(package):
            found += [document["text"] for document in read_docstrings(module, file, package)]
    return found


def edited(text: str, rate: float, chance: random.Random) -> str:
    """The text with a share of its words changed; the white space between them stays."""
    if rate == 0:
        return text
    lines = []
    for line in text.split("\n"):
        words: list[str] = []
        for word in line.split(" "):
            if not word or chance.random() >= rate:
                words.append(word)
                continue
            kind = chance.randrange(3)
            words += [f"{word[::-1]}", *([word, word] if kind == 1 else [])] if kind else []
        lines.append(" ".join(words))
    return "\n".join(lines)


def write(folder: Path, documents: int) -> None:
    """Write the corpus."""
    texts = originals()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder.with_suffix(".truth"), "w", encoding="utf-8") as truth:
        for start in range(0, documents, SHARD):
            with open(folder / f"{start // SHARD:05d}.jsonl", "w", encoding="utf-8") as shard:
                for number in range(start, min(start + SHARD, documents)):
                    original, copy = number % len(texts), number // len(texts)
                    digest = hashlib.sha256(f"{number}".encode()).digest()
                    rate = 0.0 if copy == 0 else RATES[digest[0] % len(RATES)]
                    text = edited(texts[original], rate, random.Random(number))
                    shard.write(json.dumps({"id": f"d{number}", "text": text}, ensure_ascii=False) + "\n")
                    truth.write(json.dumps({"id": f"d{number}", "of": f"d{original}", "rate": rate}) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--documents", type=int, default=100_000)
    given = parser.parse_args()
    write(given.folder, given.documents)
