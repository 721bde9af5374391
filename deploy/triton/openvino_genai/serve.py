"""Load OpenVINO GenAI's engine as the model's configuration says."""

from __future__ import annotations

import json
import os
from pathlib import Path

from engine import Engine


def load(args: dict[str, str]) -> Engine:
    """``args`` are those of Triton's ``initialize``."""
    parameters = json.loads(args["model_config"])["parameters"]
    values = {name: entry["string_value"] for name, entry in parameters.items()}
    return Engine(
        Path(args["model_repository"]) / args["model_version"] / "openvino",
        kv_cache_gb=int(values["kv_cache_gb"]),
        threads=int(os.environ.get("LIFECYCLE_THREADS", "2")),
        max_new_tokens=int(values["max_new_tokens"]),
        context=int(values["context"]),
    )
