"""Can transformers make a model of a base's configuration?  Tried in the small, before anything rests on it.

:mod:`pipeline.runner.base_content` checks what is known to go wrong before the first step starts.  What a version of transformers
makes of the rest (an activation or a rotary embedding that it does not know, a value of the wrong type) is known to it alone.  So
every step that is given the user's folder builds the model without weights, and asks a small one of the same settings.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from pipeline.stages.step import InputError

LENGTH = 4  # tokens of the trial
SMALL = {
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "intermediate_size": 8,
    "vocab_size": 8,
}
# The small model has no rows for them.
NO_TOKENS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))


@functools.cache
def check(folder: Path) -> None:
    """Raises :class:`InputError`, in the words of transformers, where no model of ``folder/config.json`` gives numbers."""
    import torch
    import transformers

    said = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    try:
        config = _config(folder)
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(config)
        width = said.get("head_dim") or said["hidden_size"] // said["num_attention_heads"]
        small = _config(folder, **SMALL, **NO_TOKENS, hidden_size=width, head_dim=width)
        if isinstance(getattr(small, "layer_types", None), list):
            small.layer_types = small.layer_types[:1]
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_config(small).eval()
            logits = model(input_ids=torch.arange(LENGTH)[None]).logits
        whole = bool(torch.isfinite(logits).all())
    except Exception as error:  # whatever transformers, or a library that it asks, has against it
        reason = next(iter(str(error).strip().splitlines()), "")
        raise InputError(
            f"model.base: {folder}: transformers {transformers.__version__} makes no model of config.json: "
            f"{type(error).__name__}: {reason}"
        ) from None
    if not whole:
        raise InputError(
            f"model.base: {folder}: a model with the settings of config.json gives no finite numbers; look at "
            f"rope_theta, rope_scaling and rms_norm_eps"
        )


def _config(folder: Path, **other: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **other)
