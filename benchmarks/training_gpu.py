"""Training an 8B-shape Llama on a GPU: tokens a second, model FLOP utilisation, peak memory.

    .venvs/core/bin/python -m benchmarks.training_gpu --write       # on a machine with an NVIDIA GPU
    .venvs/core/bin/python -m benchmarks.training_gpu --tiny        # every line of it on a CPU, in seconds

Not executed here: no GPU.  The shape is Llama 3 8B's, randomly initialised on the device and
written to the disk once, so nothing is downloaded.  The project's own recipe classes train
it (LoRA of rank 16 on every projection, and all weights), with rows of 4,096 tokens, whole
and packed from shorter sequences, against a loop of Transformers and PEFT in the same
process; SFT, and DPO with the adapters off as the reference.  A contender that does not fit the
memory is said so.  One process drives one GPU; with several, run one for each (``CUDA_VISIBLE_DEVICES``).

Two utilisations are told.  ``6N`` counts six operations a weight and token for every weight, output
layer at every position, as AutoModel's published figures do (``llama3_flops``: 402 TFLOP/s, 41%
of an H100's 989, with LoRA at 4,096).  ``needed`` counts what has to be computed: under adapters no
gradient of a frozen weight (4N, and 6 for the adapters' own), the output layer at labelled
positions.  Attention is causal in both.  Operations done again by recomputation count in neither.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.trainers import gpu_sides
from benchmarks.trainers.gpu_sides import RANK
from benchmarks.trainers.work import Shape, Work

MARKS = ("<!-- training-gpu -->", "<!-- /training-gpu -->")
LLAMA_8B = Shape(128_256, 4096, 14_336, 32, 32, 8)
TINY = Shape(300, 32, 64, 2, 4, 2)
MIXED = (8, 4, 2, 1, 1)  # sixteenths of a row: lengths of the sequences that are packed into one
LIMIT_S = 390  # no contender starts later, so that all end within 8 minutes
# Dense bf16 TFLOP/s of NVIDIA's data sheets; else the matrix product is measured.
PEAKS = {"H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "A100": 312, "L40S": 362, "B200": 2250}


@dataclass(frozen=True)
class Variant:
    """A contender at a piece of work: ``side`` is ``ours`` or ``plain``."""

    side: str
    kind: str
    peft: str
    recompute: str
    lengths: str = "whole"

    @property
    def name(self) -> str:
        """As the table has it."""
        who = "ours" if self.side == "ours" else "Transformers + PEFT"
        return f"{who}, {self.kind.upper()}, {'LoRA' if self.peft == 'lora' else 'all weights'}"


# In the order of their worth, for the time may run out.
VARIANTS = (
    Variant("ours", "sft", "lora", "none"),
    Variant("plain", "sft", "lora", "none"),
    Variant("ours", "sft", "lora", "none", "packed"),
    Variant("plain", "sft", "lora", "none", "packed"),
    Variant("ours", "sft", "lora", "full"),
    Variant("ours", "sft", "lora", "selective"),
    Variant("ours", "dpo", "lora", "none", "packed"),
    Variant("plain", "dpo", "lora", "none", "packed"),
    Variant("ours", "sft", "none", "full"),
    Variant("plain", "sft", "none", "full"),
)


def adapter_weights(shape: Shape, rank: int) -> int:
    """Weights of the adapters on all seven projections of every layer."""
    width, kv = shape.attention_width, shape.attention_width * shape.kv_heads // shape.heads
    pairs = [
        (shape.hidden_size, width),
        (shape.hidden_size, kv),
        (shape.hidden_size, kv),
        (width, shape.hidden_size),
    ]
    pairs += [(shape.hidden_size, shape.intermediate_size)] * 3
    return shape.layers * rank * sum(one + other for one, other in pairs)


def needed_flops(shape: Shape, work: Work, peft: str) -> float:
    """What has to be computed in a forward and backward pass."""
    adapters = 6 * adapter_weights(shape, RANK) * work.tokens if peft == "lora" else 0
    return work.flops(shape, frozen=peft == "lora") + adapters


def conventional_flops(shape: Shape, work: Work) -> float:
    """6N and attention, the output layer at every position."""
    return Work(work.tokens, work.squares, work.tokens).flops(shape)


def row_lengths(lengths: str, row: int, kind: str) -> list[int]:
    """Lengths of the sequences of a row; for DPO they come in pairs of one length."""
    if lengths == "whole":
        return [row] if kind == "sft" else [row // 2, row // 2]
    shares = MIXED if kind == "sft" else (4, 4, 2, 2, 1, 1, 1, 1)
    return [row * share // 16 for share in shares]


def settings(variant: Variant, sequences: int, rows: int, steps: int) -> dict[str, Any]:
    """The settings of a variant; ``sequences`` fill a row, ``rows`` make a step, a row at a time."""
    micro = sequences // (2 if variant.kind == "dpo" else 1)
    return {
        "peft": variant.peft,
        "lora": {"rank": RANK, "alpha": 2 * RANK, "dropout": 0.0, "targets": ["*_proj"]},
        "packing": True,
        "precision": "bf16-weights",
        "lr": 1e-5,
        "micro_batch_size": micro,
        "global_batch_size": micro * rows,
        "max_steps": steps,
        "warmup_steps": 0,
        "parallel": {
            "strategy": "ddp",
            "tensor": 1,
            "context": 1,
            "sequence": False,
            "recompute": variant.recompute,
        },
    }


def peak_flops(device: str) -> tuple[float, str]:
    """Of a dense bf16 matrix product, operations a second, and where that is from."""
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    for known, tera in PEAKS.items():
        if known in name:
            return tera * 1e12, f"{tera} TFLOP/s by the data sheet"
    size = 8192 if device == "cuda" else 256
    one, other = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(10):
        began = time.perf_counter()
        one @ other
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    found = 2 * size**3 / min(times)
    return found, f"{found / 1e12:.3g} TFLOP/s measured"


def line(variant: Variant, shape: Shape, work: Work, seconds: list[float], memory: float, peak: float) -> str:
    """A variant's row of the table."""
    head = f"| {variant.name} | {variant.lengths} | {variant.recompute} |"
    if not seconds:
        return f"{head} does not fit | | | | |"
    each = statistics.median(seconds)
    conventional, needed = (
        conventional_flops(shape, work) / each,
        needed_flops(shape, work, variant.peft) / each,
    )
    return (
        f"{head} {work.tokens / each:,.0f} | {conventional / 1e12:.3g} | {conventional / peak:.1%} | "
        f"{needed / peak:.1%} | {memory / 2**30:.1f} GiB |"
    )


def measure(
    shape: Shape, row: int, rows: int, steps: int, warm_up: int, folder: Path, device: str
) -> list[str]:
    """Run the variants that there is time for; the table."""
    began = time.monotonic()
    gpu_sides.job(folder, shape, row, gpu_sides.threads())
    parameters = gpu_sides.model(folder, shape, row, device)
    peak, source = peak_flops(device)
    lines = [
        f"{parameters / 1e9:.2f}B parameters, {rows} x {row:,} tokens a step, a row at a time; peak {source}.", "",
        "| | rows | recomputed | tokens/s | TFLOP/s (6N) | of the peak (6N) | needed, of the peak | peak memory |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]  # fmt: skip
    for variant in VARIANTS:
        if time.monotonic() - began > LIMIT_S:
            lines.append(
                f"| {variant.name} | {variant.lengths} | {variant.recompute} | no time was left | | | | |"
            )
            continue
        lengths = row_lengths(variant.lengths, row, variant.kind)
        one = gpu_sides.data(folder, variant.kind, lengths, shape.vocab_size, rows * (steps + warm_up + 1))
        changes = settings(variant, len(lengths), rows, steps + warm_up + 1)
        side = gpu_sides.ours if variant.side == "ours" else gpu_sides.plain
        given = changes if variant.side == "ours" else {**changes, "accumulate": rows}

        def run(side: Any = side, kind: str = variant.kind, given: dict[str, Any] = given) -> list[float]:
            found: list[float] = side(folder, kind, given, steps, warm_up)
            return found

        seconds, memory = gpu_sides.fresh(run)
        work = Work(one.tokens * rows, one.squares * rows, one.labels * rows)
        lines.append(line(variant, shape, work, seconds, memory, peak))
        print(lines[-1], flush=True)
    return lines


def main(words: list[str]) -> int:
    """Measure, print one table, and write it into the README on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a miniature model: to see that every line runs, also on a CPU"
    )
    parser.add_argument("--row", type=int, default=4096, help="tokens of a row")
    parser.add_argument("--rows", type=int, default=2, help="rows of an optimiser step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument(
        "--folder", type=Path, help="where 16 GB of weights are written (default: a temporary folder)"
    )
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    given = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not given.tiny:
        sys.exit(
            "error: there is no CUDA device; --tiny runs a miniature on the CPU, to see that everything runs"
        )
    shape, row = (TINY, 64) if given.tiny else (LLAMA_8B, given.row)
    steps, warm_up = (2, 1) if given.tiny else (given.steps, 3)
    with tempfile.TemporaryDirectory(prefix="training-gpu-", dir=given.folder) as scratch:
        lines = measure(shape, row, given.rows, steps, warm_up, Path(scratch), device)
    where = torch.cuda.get_device_name() if device == "cuda" else "a CPU"
    lines += ["", f"`python -m benchmarks.training_gpu`: {where}, torch {torch.__version__}, {date.today()}."]
    print("\n".join(lines))
    if given.write:
        readme = Path(__file__).parent / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        text = "\n".join(lines)
        readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
