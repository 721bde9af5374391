"""Models that are only read, by evaluation and sampling: where they are held and in which precision.

On a machine with GPUs a model is spread over them (not executed here), a language model in the precision that it was
saved in; without, it is held in main memory.  All else is fp32: scores must not depend on their batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pipeline.stages.models import FROM_FILES, served_generation


def load_model(folder: Path) -> Any:
    """The language model of a Hugging Face folder."""
    from transformers import AutoModelForCausalLM

    kind = "auto" if torch.cuda.is_available() else torch.float32
    found = AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, attn_implementation="sdpa", **FROM_FILES, **_place()
    )
    found.generation_config = served_generation(found.generation_config)
    return found.eval()


def load_classifier(folder: Path) -> Any:
    """The sequence classification model of a Hugging Face folder."""
    from transformers import AutoModelForSequenceClassification

    found = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, **FROM_FILES, **_place()
    )
    return found.eval()


def _place() -> dict[str, Any]:
    return {"device_map": "auto"} if torch.cuda.is_available() else {}
