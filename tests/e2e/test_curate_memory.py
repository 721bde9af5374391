"""Curation of a corpus of twenty times the memory that any of its processes may have."""

from __future__ import annotations

import hashlib
import json
import resource
from pathlib import Path

import pytest
from conftest import Lifecycle

LIMIT_MB = 352  # of data (RLIMIT_DATA) for the controller, the step and every worker each
TIMES = 20
PARAGRAPHS, OF_A_DOCUMENT = 4000, 64


def number(*parts: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:6], "big")


def paragraphs() -> list[str]:
    """Prose-like paragraphs of some 4,000 characters, all different."""
    words = [
        f"{chr(97 + n % 26)}{hashlib.sha256(str(n).encode()).hexdigest()[: 4 + n % 9]}" for n in range(4_000)
    ]
    made = []
    for place in range(PARAGRAPHS):
        start = number("paragraph", place)
        chosen = [words[(start + step * (7 + start % 101)) % len(words)] for step in range(450)]
        made.append(" ".join(chosen) + ".")
    return made


def write_corpus(folder: Path, size: int) -> tuple[int, int]:
    """Write documents of a quarter of a megabyte until there are ``size`` bytes.

    Every tenth is the one before it again, every tenth the one before it with a paragraph
    exchanged.  Returns the documents, and those that are not one of these.
    """
    pool = paragraphs()
    folder.mkdir()
    written = documents = originals = 0
    while written < size:
        with open(folder / f"{documents // 400:05d}.jsonl", "w") as shard:
            for _ in range(400):
                kind = documents % 10
                of = documents - 1 if kind in (3, 7) else documents
                parts = [pool[number(of, place) % PARAGRAPHS] for place in range(OF_A_DOCUMENT)]
                if kind == 7:
                    another = 1 + number("other", documents) % (PARAGRAPHS - 1)
                    parts[5] = pool[(number(of, 5) + another) % PARAGRAPHS]
                originals += kind not in (3, 7)
                written += shard.write(json.dumps({"text": "\n".join(parts)}) + "\n")
                documents += 1
    return documents, originals


@pytest.mark.full
def test_a_corpus_of_twenty_times_the_memory(tmp_path: Path) -> None:
    documents, originals = write_corpus(tmp_path / "corpus", TIMES * LIMIT_MB << 20)
    recipe = tmp_path / "large.yaml"
    recipe.write_text(
        "stages: [curate]\ncurate:\n"
        f"  sources: [{{kind: jsonl, path: {tmp_path / 'corpus'}}}]\n"
        "  stages: [UnicodeReformatter, WordCountFilter, exact-duplicates, near-duplicates]\n"
        "  pairs: false\n  max_characters: 0\n  memory_mb: 64\n  tokenizer_documents: 200\n  workers: 2\n"
    )
    lifecycle = Lifecycle(tmp_path / "runs", "")
    limit = LIMIT_MB << 20
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, before[1]))  # inherited by everything that starts now
    try:
        lifecycle("curate", recipe=str(recipe), timeout_s=3600)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
    report = json.loads((lifecycle.latest("curate", "large") / "report.json").read_text())
    assert report["documents"]["raw"] == documents
    assert report["documents"]["kept"] == originals
    assert report["documents"]["dropped"] == {
        "exact-duplicates": documents // 10,
        "near-duplicates": documents // 10,
    }
