"""What the sides have in common; standard library only, as each runs in its own environment."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def arguments() -> argparse.Namespace:
    """``INPUT OUTPUT --workers N --work filters|dedup``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", choices=("filters", "dedup"), default="filters")
    return parser.parse_args()


def filters() -> list[tuple[str, dict[str, Any]]]:
    """The filters of the comparison with Curator, with their parameters."""
    text = (Path(__file__).parent / "filters.json").read_text(encoding="utf-8")
    return [(name, given) for name, given in json.loads(text)]


def shards(folder: Path) -> list[Path]:
    """The corpus's files."""
    return sorted(folder.glob("*.jsonl"))


def ids(files: Iterable[Path]) -> Iterator[str]:
    """The ids in JSONL files, plain or packed."""
    import gzip

    for file in files:
        with gzip.open(file, "rt") if file.suffix == ".gz" else file.open(encoding="utf-8") as handle:
            for line in handle:
                yield str(json.loads(line)["id"])


def say(tool: str, version: str, documents_in: int, files: Iterable[Path], seconds: float) -> None:
    """Print the line of JSON."""
    kept = sorted(ids(files))
    print(
        json.dumps(
            {
                "tool": tool,
                "version": version,
                "documents_in": documents_in,
                "documents_out": len(kept),
                "seconds": round(seconds, 3),
                "kept": hashlib.sha256("\n".join(kept).encode()).hexdigest(),
            }
        )
    )


def count(files: Iterable[Path]) -> int:
    """Lines in files."""
    return sum(1 for file in files for _ in open(file, "rb"))
