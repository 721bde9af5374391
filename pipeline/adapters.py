"""What the configuration of a LoRA adapter in PEFT's layout says, and which adapters are what we merge and serve.

An adapter is ``W + scale * B @ A`` for each layer that it changes, with DoRA every row scaled to a learned magnitude
(Hu et al. 2021; Liu et al. 2024; rank-stabilised scales: Kalajdzievski 2023).  PEFT can do more; whatever else a
configuration asks for is refused, since a model without it would be another one.  Standard library only.
"""

from __future__ import annotations

import math
import re
from typing import Any

# Settings of PEFT's LoraConfig that change what is computed, and the values that leave it as above.
PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    # The others take part of the base's weights into the adapter, and so need another base.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, []),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "use_bdlora": (None,),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "arrow_config": (None,),
    "kasa_config": (None,),
}


def kind_fault(config: dict[str, Any]) -> str | None:
    """Which setting of a configuration that others wrote is not of its kind; None where all are."""
    for name, kind, words in (
        ("r", int, "a whole number"),
        ("lora_alpha", int | float, "a number"),
        ("rank_pattern", dict, "a number for every pattern"),
        ("alpha_pattern", dict, "a number for every pattern"),
        ("use_dora", bool, "true or false"),
        ("use_rslora", bool, "true or false"),
    ):
        value = config.get(name)
        number = kind is not bool and isinstance(value, bool)
        if value is not None and (number or not isinstance(value, kind)):
            return f"adapter_config.json: {name} is {value!r}, not {words}"
    for name in ("rank_pattern", "alpha_pattern"):
        for pattern, value in (config.get(name) or {}).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not _is_pattern(pattern):
                return f"adapter_config.json: {name} has {value!r} for {pattern!r}"
    if isinstance(config.get("r"), int) and config["r"] < 1:
        return f"adapter_config.json: r is {config['r']}, not at least 1"
    return None


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True


def fault(config: dict[str, Any]) -> str | None:
    """Why an adapter of this configuration is not one that can be merged or served; None where it is."""
    for name in ("peft_type", "r", "lora_alpha"):
        if config.get(name) is None:
            return f"adapter_config.json does not say {name}"
    for name, plain in PLAIN.items():
        if name in config and config[name] not in plain:
            wanted = " or ".join(repr(value) for value in plain if value != [])
            return f"{name} is {config[name]!r}; what can be merged and served has {wanted}"
    return None


def request_fault(config: dict[str, Any], max_rank: int) -> str | None:
    """Why engines that add an adapter to a request cannot serve this one; None where they can.

    vLLM 0.24.0 (``lora/peft_helper.py``) and TensorRT-LLM 1.2.1 take one scale for a whole adapter, and no magnitudes.
    """
    if config.get("use_dora"):
        return "DoRA's magnitudes are taken by no engine that chooses adapters by request; merged, they are"
    for name in ("rank_pattern", "alpha_pattern"):
        if config.get(name):
            return f"{name} gives layers scales of their own, and an engine that chooses adapters by request takes one"
    if int(config["r"]) > max_rank:
        return f"its rank is {config['r']}, and export.serving.max_lora_rank {max_rank}"
    return None


def scale(config: dict[str, Any], layer: str, rank: int) -> float:
    """What ``B @ A`` of a layer, of this rank, is multiplied by."""
    patterns = config.get("alpha_pattern") or {}
    # The first pattern that the end of the layer's name matches, as in PEFT.
    found = next((name for name in patterns if re.fullmatch(rf"(.*\.)?({name})", layer)), None)
    alpha = float(config["lora_alpha"] if found is None else patterns[found])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
