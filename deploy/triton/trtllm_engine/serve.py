"""Load the engine that asks Triton's TensorRT-LLM backend beside this model."""

from __future__ import annotations

import json
from pathlib import Path

from engine import Engine


def load(args: dict[str, str]) -> Engine:
    """``args`` are those of Triton's ``initialize``."""
    parameters = json.loads(args["model_config"])["parameters"]
    backend = f"{args['model_name']}-engine"
    return Engine(
        backend,
        Path(args["model_repository"]).parent / backend / "1" / "tokenizer",
        max_new_tokens=int(parameters["max_new_tokens"]["string_value"]),
        context=int(parameters["context"]["string_value"]),
        most=int(parameters["most_requests"]["string_value"]),
    )
