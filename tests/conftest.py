"""What holds for every suite; read before any of them imports a library with threads of its own."""

from __future__ import annotations

import os

# As the product's own processes wait (pipeline/threads.py): suites run beside each other, and beside servers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
