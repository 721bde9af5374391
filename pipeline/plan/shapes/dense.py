"""Dense transformers: attention with heads, a feed-forward of two or three matrices.

Llama, Mistral, Qwen2, Qwen3 and Gemma 1 to 3 (``transformers/models/*/modeling_*.py``, 5.18).  Attention: Vaswani et al.
2017; grouped queries: Ainslie et al. 2023; gated feed-forward: Shazeer 2020; sliding windows: Beltagy et al. 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.plan.shapes.fields import REQUIRED, Fields, Required
from pipeline.plan.shapes.parts import Layer, Linear, Part
from pipeline.plan.shapes.shape import Shape

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class Attention(Part):
    """Scaled dot-product attention over ``heads`` query heads and ``kv_heads`` key and value heads.

    ``window``: positions that a token looks at, itself included; None for all.
    """

    words = "attention"

    width: int
    heads: int
    kv_heads: int
    head_size: int
    query_bias: bool = False
    output_bias: bool = False
    qk_norms: bool = False
    window: int | None = None

    @property
    def linears(self) -> tuple[Linear, ...]:
        wide, narrow = self.heads * self.head_size, self.kv_heads * self.head_size
        return (
            Linear("q_proj", self.width, wide, self.query_bias),
            Linear("k_proj", self.width, narrow, self.query_bias),
            Linear("v_proj", self.width, narrow, self.query_bias),
            Linear("o_proj", wide, self.width, self.output_bias),
        )

    @property
    def vectors(self) -> int:
        return 2 * self.head_size if self.qk_norms else 0

    @property
    def values_per_token(self) -> int:
        return 2 * self.kv_heads * self.head_size

    def cache_bytes(self, tokens: int, bytes_per_value: float) -> float:
        kept = tokens if self.window is None else min(tokens, self.window)
        return kept * self.values_per_token * bytes_per_value

    @property
    def attention_heads(self) -> tuple[int, int, int]:
        return self.heads, self.kv_heads, self.head_size

    def attention_flops(self, length: int, causal: bool) -> float:
        return 4.0 * self.heads * self.head_size * positions_seen(length, self.window, causal)


def positions_seen(length: int, window: int | None, causal: bool) -> float:
    """Positions that a token's query meets, on the average over a sequence.

    Without causality all of them, or the window.  With it half of them, as papers and NeMo's performance summaries
    count (``s / 2``, rather than ``(s + 1) / 2``); of a window ``w``, ``w - w^2 / 2s``, since the first ``w`` tokens
    meet a triangle and the others the whole window.
    """
    reach = length if window is None else min(length, window)
    return reach - reach * reach / (2 * length) if causal else float(reach)


@dataclass(frozen=True)
class FeedForward(Part):
    """``down(act(gate x) * up x)``, or ``down(act(up x))`` where it is not gated; ``name`` is its module's."""

    words = "feed-forward"

    width: int
    inner: int
    gated: bool = True
    bias: bool = False

    @property
    def linears(self) -> tuple[Linear, ...]:
        names = ("gate_proj", "up_proj") if self.gated else ("up_proj",)
        rising = tuple(Linear(name, self.width, self.inner, self.bias) for name in names)
        return (*rising, Linear("down_proj", self.inner, self.width, self.bias))

    @property
    def inner_width(self) -> int:
        return self.inner


# ------------------------------------------------------------------------------------------- reading


def attention(
    fields: Fields,
    *,
    kv_default: int | None = None,
    head_default: int | None = None,
    heads_default: int | Required = REQUIRED,
    query_bias: bool | None = None,
    output_bias: bool | None = None,
    qk_norms: bool = False,
) -> Attention:
    """The attention that a configuration describes, without a window.

    ``kv_default``: key and value heads where the field is missing (null, or no default: as many as heads);
    ``head_default``: head size where the field is missing (null, or no default: width / heads); a bias of None is read
    from ``attention_bias``.
    """
    width = fields.size("hidden_size")
    heads = fields.size("num_attention_heads", default=heads_default)
    kv_heads = fields.optional("num_key_value_heads", kv_default) or heads
    if heads % kv_heads:
        raise fields.fault(
            "num_key_value_heads", f"= {kv_heads} does not divide num_attention_heads = {heads}"
        )
    head_size = fields.optional("head_dim", head_default)
    if head_size is None:
        if width % heads:
            raise fields.fault("num_attention_heads", f"= {heads} does not divide hidden_size = {width}")
        head_size = width // heads
    bias = fields.flag("attention_bias", False)
    return Attention(
        width,
        heads,
        kv_heads,
        head_size,
        bias if query_bias is None else query_bias,
        bias if output_bias is None else output_bias,
        qk_norms,
    )


def context(fields: Fields) -> int | None:
    """The longest sequence that the positions were made for."""
    return fields.optional("max_position_embeddings")


def windows(fields: Fields, kinds: Sequence[str], window: int | None) -> list[int | None]:
    """The window of each layer from its kind, ``sliding_attention`` or ``full_attention``."""
    for kind in kinds:
        if kind not in (SLIDING, FULL):
            raise fields.fault("layer_types", f"has {kind!r}; known are {SLIDING} and {FULL}")
    if SLIDING in kinds and window is None:
        raise fields.fault("sliding_window", "is missing, and layer_types has layers with " + SLIDING)
    return [window if kind == SLIDING else None for kind in kinds]


def layer_kinds(fields: Fields, depth: int) -> Sequence[str] | None:
    """``layer_types``, one for each layer, or None where it is missing."""
    kinds = fields.words("layer_types")
    if kinds is not None and len(kinds) != depth:
        raise fields.fault("layer_types", f"has {len(kinds)} entries for num_hidden_layers = {depth}")
    return kinds


def _shape(
    fields: Fields,
    family: str,
    mixer: Attention,
    reaches: Sequence[int | None],
    *,
    tied: bool = False,
    norms: int = 2,
    bias: bool = False,
    vocab_default: int | Required = REQUIRED,
) -> Shape:
    forward = FeedForward(mixer.width, fields.size("intermediate_size"), bias=bias)
    known = {reach: Layer(replace(mixer, window=reach), forward, norms) for reach in set(reaches)}
    return Shape(
        name=fields.name,
        family=family,
        vocab=fields.size("vocab_size", default=vocab_default),
        width=mixer.width,
        context=context(fields),
        tied=fields.flag("tie_word_embeddings", tied),
        layers=tuple(known[reach] for reach in reaches),
    )


def llama(fields: Fields) -> Shape:
    """Llama 1 to 3 (Touvron et al. 2023; Dubey et al. 2024), and the models that share its architecture."""
    reaches = [None] * fields.depth()
    return _shape(fields, "llama", attention(fields), reaches, bias=fields.flag("mlp_bias", False))


def mistral(fields: Fields) -> Shape:
    """Mistral (Jiang et al. 2023): a window in all layers where ``sliding_window`` is not null."""
    mixer = attention(fields, kv_default=8, query_bias=False, output_bias=False)
    return _shape(fields, "mistral", mixer, [fields.optional("sliding_window", 4096)] * fields.depth())


def _late_windows(fields: Fields) -> list[int | None]:
    """Qwen's windows: in layers from ``max_window_layers`` on, where ``use_sliding_window`` is set."""
    depth, window = fields.depth(), None
    if fields.flag("use_sliding_window", False):
        window = fields.optional("sliding_window", 4096)
    kinds = layer_kinds(fields, depth)
    if kinds is None:
        first = fields.count("max_window_layers", default=28) if window is not None else depth
        kinds = [SLIDING if at >= first else FULL for at in range(depth)]
    return windows(fields, kinds, window)


def qwen2(fields: Fields) -> Shape:
    """Qwen2 and Qwen2.5 (Yang et al. 2024): biases on queries, keys and values."""
    mixer = attention(fields, kv_default=32, query_bias=True, output_bias=False)
    return _shape(fields, "qwen2", mixer, _late_windows(fields))


def qwen3(fields: Fields) -> Shape:
    """Qwen3 (Yang et al. 2025): norms on queries and keys, a head size of its own."""
    mixer = attention(fields, kv_default=32, head_default=128, qk_norms=True)
    return _shape(fields, "qwen3", mixer, _late_windows(fields))


def gemma(fields: Fields) -> Shape:
    """Gemma (Mesnard et al. 2024): heads wider than width / heads, one embedding for input and output."""
    mixer = attention(fields, kv_default=16, head_default=256)
    return _shape(fields, "gemma", mixer, [None] * fields.depth(), tied=True)


def gemma2(fields: Fields) -> Shape:
    """Gemma 2 (Rivière et al. 2024): every other layer with a window, norms before and after each part."""
    depth = fields.depth()
    kinds = layer_kinds(fields, depth) or [FULL if at % 2 else SLIDING for at in range(depth)]
    reaches = windows(fields, kinds, fields.optional("sliding_window", 4096))
    return _shape(
        fields, "gemma2", attention(fields, kv_default=4, head_default=256), reaches, tied=True, norms=4
    )


def gemma3_text(fields: Fields) -> Shape:
    """Gemma 3 (Kamath et al. 2025), its language model: five layers with a window to one without.

    Published files leave out the heads and the vocabulary where they are the class's own.
    """
    depth = fields.depth()
    pattern = fields.size("sliding_window_pattern", "_sliding_window_pattern", default=6)
    kinds = layer_kinds(fields, depth) or [SLIDING if (at + 1) % pattern else FULL for at in range(depth)]
    reaches = windows(fields, kinds, fields.optional("sliding_window", 4096))
    mixer = attention(fields, kv_default=4, head_default=256, heads_default=8, qk_norms=True)
    return _shape(fields, "gemma3_text", mixer, reaches, tied=True, norms=4, vocab_default=262_208)


def gemma3(fields: Fields) -> Shape:
    """The language model of a Gemma 3 that also sees (``text_config``); its image tower is left out."""
    section = fields.config.get("text_config")
    if not isinstance(section, dict):
        raise fields.fault("text_config", "is missing: it holds the shape of the language model")
    # Whether embeddings are tied is a setting of the whole model, which the text part repeats or leaves out.
    outer = {key: value for key, value in fields.config.items() if key == "tie_word_embeddings"}
    return gemma3_text(Fields({**section, **outer}, fields.name, "text_config."))
