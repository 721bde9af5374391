"""Mixtures of experts: a router sends each token to a few of many feed-forwards.

Mixtral (Jiang et al. 2024) and Qwen3-MoE (Yang et al. 2025); DeepSeek-V3's experts, with shared ones, are built of the
same part in ``latent.py``, Nemotron-H's in ``statespace.py``.  The bias by which DeepSeek's router balances its experts is a
buffer in transformers and no parameter: it is set, not trained, and is not counted here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.plan.shapes.dense import FeedForward, attention, context
from pipeline.plan.shapes.fields import Fields
from pipeline.plan.shapes.parts import Layer, Linear, Part
from pipeline.plan.shapes.shape import Shape


@dataclass(frozen=True)
class Experts(Part):
    """``count`` feed-forwards, ``active`` of which one token is sent to, beside a shared one that all meet.

    ``latent``: width that tokens are projected to before they reach the experts, and back from after; None for none.
    """

    words = "experts and routers"

    width: int
    inner: int
    count: int
    active: int
    gated: bool = True
    shared: FeedForward | None = None
    latent: int | None = None
    bias: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        outside = self.latent or self.width
        rising = 2 * self.inner if self.gated else self.inner
        name = "experts.gate_up_proj" if self.gated else "experts.up_proj"
        found = [
            Linear("router", self.width, self.count, module=False),
            Linear(name, outside, rising, copies=self.count, used=self.active, module=False),
            Linear(
                "experts.down_proj", self.inner, outside, copies=self.count, used=self.active, module=False
            ),
        ]
        if self.latent is not None:
            found.append(Linear("fc1_latent_proj", self.width, self.latent, self.bias))
            found.append(Linear("fc2_latent_proj", self.latent, self.width, self.bias))
        return (*found, *(self.shared.linears if self.shared is not None else ()))

    @property
    def inner_width(self) -> int:
        return self.inner


def active_experts(fields: Fields, count: int, default: int) -> int:
    """``num_experts_per_tok``, of ``count``."""
    active = fields.size("num_experts_per_tok", default=default)
    if active > count:
        raise fields.fault("num_experts_per_tok", f"= {active} is more than the {count} experts there are")
    return active


def mixtral(fields: Fields) -> Shape:
    """Mixtral: Mistral's attention, gated experts in every layer."""
    mixer = attention(fields, kv_default=8, query_bias=False, output_bias=False)
    mixer = replace(mixer, window=fields.optional("sliding_window"))
    count = fields.size("num_local_experts", "num_experts")
    experts = Experts(mixer.width, fields.size("intermediate_size"), count, active_experts(fields, count, 2))
    return Shape(
        name=fields.name,
        family="mixtral",
        vocab=fields.size("vocab_size"),
        width=mixer.width,
        context=context(fields),
        tied=fields.flag("tie_word_embeddings", False),
        layers=(Layer(mixer, experts, 2),) * fields.depth(),
    )


def qwen3_moe(fields: Fields) -> Shape:
    """Qwen3-MoE: Qwen3's attention; experts in every ``decoder_sparse_step``-th layer but ``mlp_only_layers``."""
    window = fields.optional("sliding_window", 4096) if fields.flag("use_sliding_window", False) else None
    mixer = replace(attention(fields, kv_default=4, qk_norms=True), window=window)
    count = fields.count("num_experts", "num_local_experts")
    step, plain = fields.size("decoder_sparse_step", default=1), set(fields.whole_numbers("mlp_only_layers"))
    layers = []
    for at in range(fields.depth()):
        forward: Part
        if at not in plain and count and (at + 1) % step == 0:
            inner = fields.size("moe_intermediate_size")
            forward = Experts(mixer.width, inner, count, active_experts(fields, count, 8))
        else:
            forward = FeedForward(mixer.width, fields.size("intermediate_size"))
        layers.append(Layer(mixer, forward, 2))
    return Shape(
        name=fields.name,
        family="qwen3_moe",
        vocab=fields.size("vocab_size"),
        width=mixer.width,
        context=context(fields),
        tied=fields.flag("tie_word_embeddings", False),
        layers=tuple(layers),
    )
