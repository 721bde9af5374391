"""Which linear layers the targets of adapters name, found before anything starts.  Standard library only.

A target is the name of a layer (``q_proj``) or a pattern of its whole path (``*.layers.0.*``, ``*_proj``), in which
``*`` stands for anything, as AutoModel matches them (``nemo_automodel/components/_peft/module_matcher.py``; a test holds
:func:`names` to it).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache

# Linear layers of a Llama's transformer layer, as transformers names them.
OF_A_LAYER = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
HEAD = "lm_head"


def llama_layers(depth: int) -> list[str]:
    """The paths of the linear layers of a Llama of so many layers, output layer excluded."""
    return [f"model.layers.{layer}.{name}" for layer in range(depth) for name in OF_A_LAYER]


def names(target: str, path: str) -> bool:
    """Whether a target names the layer at a path."""
    return target == path.rpartition(".")[2] or _pattern(target).match(path) is not None


def faults(targets: list[str], depth: int, tied: bool, head: bool = True) -> Iterator[str]:
    """What is wrong with the targets of adapters on a Llama; each is told by itself.

    ``tied``: the output layer shares its weights with the input embedding; ``head``: there is one at all (a reward
    model has none).
    """
    if not targets:
        yield "is empty, so that nothing would be trained; name linear layers, e.g. ['*_proj'] for all of them"
    layers = llama_layers(depth)
    for target in targets:
        on_head = head and names(target, HEAD)
        if on_head and tied:
            yield (
                f"{target!r} names {HEAD}, whose weights are the input embedding's, too (tied): an adapter would change one "
                "of the two and cannot be merged; '*_proj' names every other linear layer"
            )
        elif not on_head and not any(names(target, path) for path in layers):
            known = ", ".join(name.rpartition(".")[2] for name in OF_A_LAYER)
            yield (
                f"{target!r} names no linear layer of a Llama of {depth} layers; it has {known}; a pattern is of the whole "
                f"path, such as {layers[0]}, and * stands for anything"
            )


@cache
def _pattern(target: str) -> re.Pattern[str]:
    parts = re.split(r"(\.?\*)", target)
    made = ""
    for place, part in enumerate(parts):
        if place % 2 == 0:
            made += re.escape(part)
        elif part == ".*" and _whole_segment(parts, place):
            made += r"(\..*)?"  # the segment's children, or nothing: "layers.1.*" is not "layers.10"
        else:
            made += "(.*)"
    return re.compile(f"^{made}$")


def _whole_segment(parts: list[str], place: int) -> bool:
    """Whether what stands before a ``.*`` is a whole segment of a path, or a layer's number."""
    before = parts[place - 1]
    return before.startswith(".") or (place == 1 and bool(before)) or re.search(r"\.\d+$", before) is not None
