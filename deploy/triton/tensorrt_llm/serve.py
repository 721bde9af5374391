"""Load TensorRT-LLM's engine as ``model.yaml`` beside this file says.

``model.yaml`` is what Triton's llmapi model of TensorRT-LLM reads: arguments of ``LLM()``, and ``triton_config``, which
is Triton's own.  Paths in it are relative to this folder.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from engine import Engine


def load(args: dict[str, str]) -> Engine:
    """``args`` are those of Triton's ``initialize``."""
    parameters = json.loads(args["model_config"])["parameters"]
    folder = Path(args["model_repository"]) / args["model_version"]
    arguments = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
    arguments.pop("triton_config")
    checkpoint = folder / arguments.pop("model")
    speculative = arguments.get("speculative_config") or {}
    if "speculative_model" in speculative:
        speculative["speculative_model"] = str(folder / speculative["speculative_model"])
    adapters = folder / "adapters"
    return Engine(
        checkpoint,
        arguments,
        {each.name: each for each in sorted(adapters.iterdir())} if adapters.is_dir() else {},
        max_new_tokens=int(parameters["max_new_tokens"]["string_value"]),
        context=int(parameters["context"]["string_value"]),
    )
