"""How many threads a step or a server uses, and how they wait.  Standard library only."""

from __future__ import annotations

import os


def thread_count(setting: int) -> int:
    """The site's setting, or one per core this process may run on."""
    return setting or len(os.sched_getaffinity(0))


def thread_environment(threads: int) -> dict[str, str]:
    """The variables that say so to every library of a process that is to be started.

    OpenMP's threads spin while they wait for each other, and on a machine whose cores have other work they spin
    away the time of the very thread they wait for.  Asleep they cost next to nothing on an idle machine either
    (benchmarks/waiting.py has the figures).  Which thread computes what is the same, and so are the results.
    ``GOMP_SPINCOUNT`` in the caller's own environment still has the last word with GNU's OpenMP, which PyTorch brings.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "RAYON_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
