"""Model shapes of about so many parameters, in the manner of a base model.

Width and depth grow together as in the base (the ratio of width to layers is kept within a factor of two; below two layers' worth of
width the depth stays at two), the feed-forward ratio and the sharing of key-value heads are the base's, and heads are as wide as the
base's where that fits, else narrower, down to 8.  Vocabulary and context stay: data and tokenizer are the same.

What depends on the width (Yang et al. 2022, "Tensor Programs V", says how for hidden weights under Adam: 1/width):

learning rate      x (base width / width)^0.5: between 1/width for hidden weights and none for embeddings, of which a small model
                   mostly consists.  On llama-tiny's data 5e-3 was best at 1.3M parameters and 4e-3 at 2.0M (configs/pretrain/tiny.yaml).
initialisation     x (base width / width)^0.5, so that a layer's output keeps its scale (LeCun et al. 1998)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from pipeline.errors import UserError
from pipeline.plan.training.eager import parameters
from pipeline.schema import Model

NARROWEST_HEAD = 8
FEWEST_LAYERS = 2
ASPECT = 2.0  # times the base's ratio of width to layers, either way
NEAR = 0.05  # relative distance from the size asked for that does not count
FARTHEST = 0.25
RATE_EXPONENT = 0.5


def shaped(base: Model, wanted: float) -> Model:
    """The base in about ``wanted`` parameters.  Raises :class:`UserError` where no shape comes within a quarter of it."""
    found = min(
        ((_cost(base, made, wanted), made) for made in _shapes(base, wanted)),
        key=lambda pair: pair[0],
        default=None,
    )
    if found is None or abs(parameters(found[1]) / wanted - 1) > FARTHEST:
        near = f"; the nearest has {parameters(found[1]):,}" if found else ""
        raise UserError(
            f"no model with a vocabulary of {base.vocab_size:,} has about {wanted:,.0f} parameters{near}: ask for other sizes or "
            'budgets, or for a smaller vocabulary (--set "model.vocab_size=1024")'
        )
    return found[1]


def computing(model: Model) -> int:
    """Parameters that a token is multiplied by: all but an input embedding of its own (Kaplan et al. 2020, section 2.1)."""
    looked_up = 0 if model.tie_embeddings else model.vocab_size * model.hidden_size
    return parameters(model) - looked_up


def rate(base: Model, model: Model, lr: float) -> float:
    """The base's learning rate for a model of another width, to two digits."""
    return float(f"{min(1.0, lr * (base.hidden_size / model.hidden_size) ** RATE_EXPONENT):.2g}")


def _shapes(base: Model, wanted: float) -> Iterator[Model]:
    head = base.hidden_size // base.heads
    shared = max(1, base.heads // base.kv_heads)
    aspect = base.hidden_size / base.layers
    spread = base.initializer_range * math.sqrt(base.hidden_size)
    step = max(2, head // 8 // 2 * 2)  # rotary embeddings turn pairs
    for narrow in range(head, NARROWEST_HEAD - 1, -step):
        for heads in range(max(2, shared), 513, shared):
            width = narrow * heads
            if base.vocab_size * width > 2 * wanted:
                break
            for layers in _depths(width / aspect):
                made = replace(
                    base,
                    hidden_size=width,
                    intermediate_size=8
                    * max(1, round(width * base.intermediate_size / base.hidden_size / 8)),
                    layers=layers,
                    heads=heads,
                    kv_heads=heads // shared,
                    initializer_range=float(f"{min(1.0, spread / math.sqrt(width)):.2g}"),
                )
                if parameters(made) > 2 * wanted:
                    break
                yield made


def _depths(usual: float) -> range:
    low = max(FEWEST_LAYERS, math.ceil(usual / ASPECT))
    return range(low, max(low, math.floor(usual * ASPECT)) + 1)


def _cost(base: Model, made: Model, wanted: float) -> float:
    """How far a shape is from the size asked for, and from the base's proportions."""
    off = abs(math.log(parameters(made) / wanted))
    aspect = abs(math.log2(made.hidden_size / made.layers * base.layers / base.hidden_size))
    narrower = math.log2(base.hidden_size / base.heads * made.heads / made.hidden_size)
    return 20 * max(0.0, off - NEAR) + off + aspect + 0.5 * narrower
