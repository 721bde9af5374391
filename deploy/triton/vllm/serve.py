"""Load the engine that asks vLLM's model beside this one."""

from __future__ import annotations

import json
from pathlib import Path

from engine import Engine


def load(args: dict[str, str]) -> Engine:
    """``args`` are those of Triton's ``initialize``."""
    parameters = json.loads(args["model_config"])["parameters"]
    backend = f"{args['model_name']}-vllm"
    version = Path(args["model_repository"]).parent / backend / "1"
    arguments = json.loads((version / "model.json").read_text(encoding="utf-8"))
    adapters = version / "multi_lora.json"
    return Engine(
        backend,
        version / "checkpoint",
        sorted(json.loads(adapters.read_text(encoding="utf-8"))) if adapters.is_file() else [],
        max_new_tokens=int(parameters["max_new_tokens"]["string_value"]),
        context=int(parameters["context"]["string_value"]),
        most=int(arguments["max_num_seqs"]),
    )
