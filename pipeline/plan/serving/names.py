"""What the options of the verbs may be called, for a command line that must start at once."""

from __future__ import annotations

PRECISIONS = ("bf16", "fp8", "nvfp4", "int8", "int4-awq")
TRAINED_IN = (
    "bf16",
    "fp16",
    "fp8",
    "fp32",
)  # what training multiplies in; the others are for weights that are served
CACHES = ("bf16", "fp8", "int8", "nvfp4")
MFU = {"train": 0.4, "input": 0.4, "output": 0.05}  # where none is said
LAWS = ("sardana", "hoffmann", "besiroglu")
