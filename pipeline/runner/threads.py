"""How many threads a step may use."""

from __future__ import annotations

import os


def thread_count(setting: int) -> int:
    """The site's setting, or one per core this process may run on."""
    return setting or len(os.sched_getaffinity(0))
