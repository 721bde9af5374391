"""What the machine's matrix product can do: ``python -m benchmarks.trainers.peak FOLDER KIND WARM_UP``.

Products of square matrices of 2,048, in bf16 and in fp32; a "step" is one of each.  In
processor time, so that the machine's other work does not lower the peak.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.trainers.pace import Pace
from benchmarks.trainers.work import Work
from pipeline.stages.step import Step

SIZE = 2048


def main() -> None:
    pace = Pace(int(sys.argv[3]))
    import torch

    threads = Step.load(Path(sys.argv[1]) / "job.json").threads
    torch.set_num_threads(threads)
    while True:
        for kind in (torch.bfloat16, torch.float32):
            one, other = (torch.randn(SIZE, SIZE).to(kind) for _ in range(2))
            one @ other  # the first product chooses and prepares its kernel
            began = time.process_time()
            one @ other
            pace.extra[str(kind)] = 2 * SIZE**3 / ((time.process_time() - began) / threads)
        pace.step(Work())


if __name__ == "__main__":
    main()
