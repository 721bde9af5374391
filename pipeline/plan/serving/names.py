"""What the options of the verbs may be called, for a command line that must start at once."""

from __future__ import annotations

PRECISIONS = ("bf16", "fp8", "nvfp4", "int8", "int4-awq")
CACHES = ("bf16", "fp8", "int8", "nvfp4")
LAWS = ("sardana", "hoffmann", "besiroglu")
