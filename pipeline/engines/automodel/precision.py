"""``precision: auto``: bf16 where this machine is quicker in it, by a measurement.

Processors with bf16 instructions (AVX-512 BF16, AMX, Arm BF16) can be several times as quick in it as in
fp32; others convert in software.  What a step chose is kept, so an attempt that goes on, on whatever machine,
trains as the first did.
"""

from __future__ import annotations

import json
import time

from pipeline.schema import Optimisation
from pipeline.stages.step import Step, write_json

WIDTH = 256
PRODUCTS = 8
ROUNDS = 9
QUICKER = 1.3  # 3.7 to 4.0 with AVX-512 BF16 (AMD Zen 5, idle or busy); one without bf16 was not at hand


def choose(step: Step, settings: Optimisation) -> str:
    """The precision that a step trains in: what is asked for, or what the measurement says."""
    if settings.precision != "auto":
        return settings.precision
    if getattr(settings, "peft", "none") == "qlora":
        return "bf16"  # 4-bit weights are multiplied in nothing else
    kept = step.state / "precision.json"
    if not kept.exists():
        import torch

        if torch.cuda.is_available():
            has = torch.cuda.is_bf16_supported(including_emulation=False)
            write_json(kept, {"precision": "bf16" if has else "fp32"})
        else:
            ratio = bf16_speed()
            write_json(
                kept, {"precision": "bf16" if ratio > QUICKER else "fp32", "bf16_speed": round(ratio, 2)}
            )
        step.seal(kept)
    return str(json.loads(kept.read_text(encoding="utf-8"))["precision"])


def bf16_speed() -> float:
    """How many times as quick as in fp32 a matrix product is in bf16 here.

    One thread's own time, the least of several rounds in alternation: what else the machine does must not decide.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        least = {dtype: float("inf") for dtype in (torch.float32, torch.bfloat16)}
        for _ in range(ROUNDS):
            for dtype in least:
                side = torch.ones(WIDTH, WIDTH, dtype=dtype)
                side @ side  # the first makes ready
                began = time.thread_time()
                for _ in range(PRODUCTS):
                    side @ side
                least[dtype] = min(least[dtype], time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    return least[torch.float32] / least[torch.bfloat16]
