"""DeepSeek-V3: attention over a compressed cache, experts with shared ones.

Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1): keys and values of all heads are expanded from
one latent of ``kv_lora_rank`` values a token, beside a rotary key of ``rope`` values that all heads share, so that a layer
keeps ``kv_lora_rank + rope`` values of a token however many heads there are.  FLOP are those of the expanded form, which
training and prefill use; decoding with the expansion absorbed into queries and outputs trades fewer bytes for more FLOP
and is not counted.  The module for predicting several tokens (DeepSeek-V3, arXiv 2412.19437, section 2.2) is left out, as it
is where the model is served or counted at 671B.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.shapes.dense import FeedForward, context, positions_seen
from pipeline.plan.shapes.experts import Experts, active_experts
from pipeline.plan.shapes.fields import Fields
from pipeline.plan.shapes.parts import Layer, Linear, Part
from pipeline.plan.shapes.shape import Shape


@dataclass(frozen=True)
class LatentAttention(Part):
    """Attention whose keys and values come from a latent of ``kv_rank``, queries from one of ``query_rank`` or directly.

    ``plain`` and ``rope``: values of a query and key without and with rotary positions; ``value``: values of a value.
    """

    words = "latent attention"

    width: int
    heads: int
    query_rank: int | None
    kv_rank: int
    plain: int
    rope: int
    value: int
    bias: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        wide = self.heads * (self.plain + self.rope)
        if self.query_rank is None:
            queries: tuple[Linear, ...] = (Linear("q_proj", self.width, wide),)
        else:
            queries = (
                Linear("q_a_proj", self.width, self.query_rank, self.bias),
                Linear("q_b_proj", self.query_rank, wide),
            )
        return (
            *queries,
            Linear("kv_a_proj_with_mqa", self.width, self.values_per_token, self.bias),
            Linear("kv_b_proj", self.kv_rank, self.heads * (self.plain + self.value)),
            Linear("o_proj", self.heads * self.value, self.width, self.bias),
        )

    @property
    def vectors(self) -> int:
        return self.kv_rank + (self.query_rank or 0)  # their norms

    @property
    def values_per_token(self) -> int:
        return self.kv_rank + self.rope

    @property
    def attention_heads(self) -> tuple[int, int, int]:
        return self.heads, self.heads, self.plain + self.rope

    def attention_flops(self, length: int, causal: bool) -> float:
        each = self.plain + self.rope + self.value
        return 2.0 * self.heads * each * positions_seen(length, None, causal)


def deepseek_v3(fields: Fields) -> Shape:
    """DeepSeek-V3 and R1: ``first_k_dense_replace`` dense layers, then experts; ``q_lora_rank`` may be null."""
    width, bias = fields.size("hidden_size"), fields.flag("attention_bias", False)
    mixer = LatentAttention(
        width,
        fields.size("num_attention_heads"),
        fields.optional("q_lora_rank", 1536),
        fields.size("kv_lora_rank", default=512),
        fields.size("qk_nope_head_dim", default=128),
        fields.size("qk_rope_head_dim", default=64),
        fields.size("v_head_dim", default=128),
        bias,
    )
    depth, dense = fields.depth(), fields.count("first_k_dense_replace", default=3)
    forwards: list[Part] = []
    if dense:
        forwards += [FeedForward(width, fields.size("intermediate_size"))] * min(dense, depth)
    if dense < depth:
        count = fields.size("n_routed_experts", "num_local_experts")
        inner = fields.size("moe_intermediate_size")
        together = inner * fields.count("n_shared_experts", default=1)  # held as one wider feed-forward
        shared = FeedForward(width, together) if together else None
        experts = Experts(width, inner, count, active_experts(fields, count, 8), shared=shared)
        forwards += [experts] * (depth - dense)
    return Shape(
        name=fields.name,
        family="deepseek_v3",
        vocab=fields.size("vocab_size"),
        width=width,
        context=context(fields),
        tied=fields.flag("tie_word_embeddings", False),
        layers=tuple(Layer(mixer, forward, 2) for forward in forwards),
    )
