"""What the gateway adds to the first token, by the size of the model behind it.

    make bench-overhead
    .venvs/controller/bin/python -m benchmarks.overhead --write

``benchmarks/serving.py`` takes the gateway's own time with the trained tiny model, whose first token is there in a few
milliseconds.  Here the same is done with larger models of the same family: one step of training, since only
their arithmetic matters.  The gateway's time is the same work whatever the model; its share is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.servers import ours
from benchmarks.servers.contender import Loader
from benchmarks.serving import OVERHEAD, OVERHEAD_LEVELS, overhead, own
from benchmarks.typed import typed
from pipeline.runner.provenance import processor

RECIPE = "llama-mini"  # its documents and its 800 tokens of vocabulary
CHAIN = "stages=[curate,pretrain,export,deploy] pretrain.max_steps=1 pretrain.warmup_steps=0"
# Width, feed-forward width, layers and heads; half as many key-value heads.
SIZES = ((256, 768, 6, 4), (512, 1536, 8, 8), (768, 2048, 12, 12))


def settings(size: tuple[int, int, int, int]) -> str:
    """The recipe's settings for a model of this size."""
    width, wide, layers, heads = size
    return (
        f"{CHAIN} model.hidden_size={width} model.intermediate_size={wide} model.layers={layers} model.heads={heads} "
        f"model.kv_heads={heads // 2}"
    )


def parameters(bundle: Path) -> float:
    """Parameters of the exported model, in millions, from its file's own header."""
    with open(bundle / "model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [each["shape"] for name, each in header.items() if name != "__metadata__"]
    return sum(rows * (columns[0] if columns else 1) for rows, *columns in shapes) / 1e6


def main(words: list[str]) -> int:
    """Measure, print the table, and write it into the README on request; 1 where the largest model's share is too much."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=120, help="questions at each concurrency")
    parser.add_argument("--tokens", type=int, default=16, help="of every answer")
    parser.add_argument("--port", type=int, default=18100, help="first of the ports to listen on")
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    given = parser.parse_args(words)
    rows, shares = [], {}
    with tempfile.TemporaryDirectory(prefix="overhead-") as scratch:
        for size in SIZES:
            loader = Loader()
            try:
                with ours.deployed(Path(scratch), RECIPE, given.port, settings(size)) as deployed:
                    texts, millions = ours.questions(Path(scratch), RECIPE), parameters(deployed.bundle)
                    for level in OVERHEAD_LEVELS:
                        [row], share = overhead(
                            own(deployed), loader, texts[: given.pairs], given.tokens, level
                        )
                        rows.append(f"| {millions:,.0f} M {row}")
                        shares[level] = share
                        print(rows[-1], flush=True)
            finally:
                loader.stop()
    text = "\n".join(
        [
            "| parameters | concurrency | first token, Triton alone | Triton's protocol | | chat completions | | whole answer | a token |",
            "| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            f"`{typed('overhead', words)}`: {given.pairs} questions, answers of {given.tokens} tokens, fp32. {os.cpu_count()} cores of "
            f"{processor()}, {date.today()}, Python {platform.python_version()}.",
        ]
    )
    print(text)
    if given.write:
        ours.write_section("overhead", text)
    return 1 if max(shares.values()) > OVERHEAD else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except RuntimeError as error:
        sys.exit(f"error: {error}")
