"""The inputs and outputs of the models behind the gateway: the client contract of ``deploy/triton/config.pbtxt``.

Triton answers a JSON value of the wrong type with a server's error, and its own parser has had
faults: values are read and checked here, and only what was made here is sent on.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.gateway.errors import invalid

# Name to Triton's type; a test holds them to config.pbtxt.
INPUTS = {
    "text_input": "BYTES",
    "messages": "BYTES",
    "prompt": "BYTES",
    "stream": "BOOL",
    "max_tokens": "INT32",
    "min_tokens": "INT32",
    "temperature": "FP32",
    "top_p": "FP32",
    "top_k": "INT32",
    "repetition_penalty": "FP32",
    "presence_penalty": "FP32",
    "frequency_penalty": "FP32",
    "seed": "INT64",
    "stop_words": "BYTES",
    "ignore_end": "BOOL",
    "logprobs": "BOOL",
    "lora": "BYTES",
    "request_id": "BYTES",
    "cancel": "BOOL",
}
OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "prompt_tokens": "INT32",
    "completion_tokens": "INT32",
    "logprobs_output": "BYTES",
}
LISTS = ("stop_words",)  # the others take one value
INTEGERS = {"INT32": 2**31, "INT64": 2**63}
SHOWN = {
    "BYTES": "text",
    "BOOL": "true or false",
    "INT32": "an integer",
    "INT64": "an integer",
    "FP32": "a number",
}
MOST_DIMENSIONS = 8
LARGEST_FP32 = 3.4028234663852886e38


def checked(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a request as the model takes them.  Raises :class:`.errors.GatewayError` for a wrong one."""
    found = {}
    for name, value in values.items():
        if name not in INPUTS:
            raise invalid(f"unknown parameter {name!r}; the parameters are {', '.join(INPUTS)}", name)
        if name in LISTS:
            items = value if isinstance(value, list) else [value]
            found[name] = [_scalar(name, item) for item in items]
        else:
            if isinstance(value, list):
                if len(value) != 1:
                    raise invalid(f"{name} takes one value, not {len(value)}", name)
                value = value[0]
            found[name] = _scalar(name, value)
    return found


def chosen(names: list[Any]) -> list[str]:
    """The outputs of these names, all where there is none.  Raises :class:`.errors.GatewayError` for an unknown one."""
    for name in names:
        if name not in list(OUTPUTS):
            raise invalid(f"unknown output {name!r}; the outputs are {', '.join(OUTPUTS)}", "outputs")
    return names or list(OUTPUTS)


def check_shape(name: str, shape: Any, values: int) -> None:
    """Raise :class:`.errors.GatewayError` unless a tensor of this shape has so many values."""
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        raise invalid(f"the shape of {name} must be a list of {MOST_DIMENSIONS} lengths at most", "inputs")
    if not all(isinstance(length, int) and length >= 0 for length in shape) or math.prod(shape) != values:
        raise invalid(f"the shape of {name} is {shape}, and it has {values} values", "inputs")


def _scalar(name: str, value: Any) -> Any:
    kind = INPUTS[name]
    if kind == "BYTES" and isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:  # JSON can spell half a character
            raise invalid(f"{name} is not UTF-8 text: it holds half of a surrogate pair", name) from None
        return value
    if kind == "BOOL" and isinstance(value, bool):
        return value
    if kind in INTEGERS and isinstance(value, int) and not isinstance(value, bool):
        if not -INTEGERS[kind] <= value < INTEGERS[kind]:
            raise invalid(f"{name} is {value}, which is no {kind}", name)
        return value
    if kind == "FP32" and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= LARGEST_FP32:  # nor NaN; an integer may be too large to become a float
            raise invalid(f"{name} is {value}, which is no {kind}", name)
        return value
    raise invalid(f"{name} must be {SHOWN[kind]}", name)
