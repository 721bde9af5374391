"""Models that are only read, by evaluation and sampling: where they are held and in which precision.

On a machine with GPUs a model is spread over them in the precision that it was saved in (not executed here); without,
it is held in main memory in fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load_model(folder: Path) -> Any:
    """The language model of a Hugging Face folder."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="sdpa", **_place()).eval()


def load_classifier(folder: Path) -> Any:
    """The sequence classification model of a Hugging Face folder."""
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(folder, **_place()).eval()


def _place() -> dict[str, Any]:
    if torch.cuda.is_available():
        return {"dtype": "auto", "device_map": "auto"}
    return {"dtype": torch.float32}
