"""Mamba2's state space (Dao and Gu 2024, arXiv 2405.21060), alone and between attention layers.

A head of ``P`` channels carries a state of ``P x N`` values along the sequence; heads share the ``N`` input and output
weights of their group.  FLOP a token of the chunked scan (section 6 of the paper) with chunks of ``Q`` positions:
inside a chunk, scores ``2 Q N`` for each group and ``2 Q P`` for each head to apply them, half of that since later
positions are masked; into and out of the states ``4 N P`` for each head; and ``2 N P / Q`` to carry a state from chunk to chunk.
``causal=False`` counts what transformers' own modules compute instead: whole chunks, the last one filled up, scores
for each head by itself, and states carried by a product of all chunks with all.  Both add the convolution, two FLOP for
each of its weights.  The state stays in the cache in fp32, as transformers and ``mamba_ssm`` keep it, together with the
convolution's last inputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipeline.plan.shapes.dense import FeedForward, attention, context
from pipeline.plan.shapes.experts import Experts, active_experts
from pipeline.plan.shapes.fields import DEEPEST, Fields
from pipeline.plan.shapes.parts import Layer, Linear, Part
from pipeline.plan.shapes.shape import Shape

STATE_BYTES = 4.0  # fp32, whatever the weights are in
LETTERS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}  # of Nemotron-H's hybrid_override_pattern
OTHER_NAMES = {"linear_attention": "mamba", "full_attention": "attention"}  # of the same in transformers 5


@dataclass(frozen=True)
class StateSpace(Part):
    """``heads`` of ``head_size`` channels with states of ``state`` values, in ``groups``, scanned ``chunk`` by ``chunk``."""

    words = "state spaces"

    width: int
    heads: int
    head_size: int
    state: int
    groups: int
    kernel: int
    chunk: int
    bias: bool = False
    convolution_bias: bool = True

    @property
    def inner(self) -> int:
        """Channels of all heads."""
        return self.heads * self.head_size

    @property
    def convolved(self) -> int:
        """Channels that the convolution runs over: the heads', and the groups' input and output weights."""
        return self.inner + 2 * self.groups * self.state

    @property
    def linears(self) -> tuple[Linear, ...]:
        return (
            Linear("in_proj", self.width, self.inner + self.convolved + self.heads, self.bias),
            Linear("out_proj", self.inner, self.width, self.bias),
        )

    @property
    def vectors(self) -> int:
        convolution = self.convolved * (self.kernel + (1 if self.convolution_bias else 0))
        return convolution + 3 * self.heads + self.inner  # A, D and the time step's bias; the gated norm

    def cache_bytes(self, tokens: int, bytes_per_value: float) -> float:
        if not tokens:
            return 0.0
        return self.convolved * self.kernel * bytes_per_value + self.inner * self.state * STATE_BYTES

    def scan_flops(self, length: int, causal: bool) -> float:
        convolution = 2.0 * self.convolved * self.kernel
        if causal:
            within = min(self.chunk, length) * (self.groups * self.state + self.inner)
            return convolution + within + 2.0 * self.inner * self.state * (2 + 1 / self.chunk)
        chunks = math.ceil(length / self.chunk)
        filled = chunks * self.chunk
        within = filled * self.chunk * (self.heads * self.state + self.inner)
        across = self.inner * self.state * (2 * filled + (chunks + 1) ** 2)
        return convolution + 2.0 * (within + across) / length


def mamba2(fields: Fields) -> Shape:
    """Mamba2: a state space in every layer and no feed-forward; any length."""
    width = fields.size("hidden_size")
    mixer = StateSpace(
        width,
        heads=fields.size("num_heads", default=128),
        head_size=fields.size("head_dim", default=64),
        state=fields.size("state_size", default=128),
        groups=fields.size("n_groups", default=8),
        kernel=fields.size("conv_kernel", default=4),
        chunk=fields.size("chunk_size", default=256),
        bias=fields.flag("use_bias", False),
        convolution_bias=fields.flag("use_conv_bias", True),
    )
    _check_groups(fields, mixer, "n_groups")
    wanted = width * fields.size("expand", default=2)
    if mixer.inner != wanted:
        raise fields.fault("num_heads", f"x head_dim = {mixer.inner} is not hidden_size x expand = {wanted}")
    return Shape(
        name=fields.name,
        family="mamba2",
        vocab=fields.size("vocab_size"),
        width=width,
        context=None,
        tied=fields.flag("tie_word_embeddings", False),
        layers=(Layer(mixer, None, 1),) * fields.depth(),
    )


def nemotron_h(fields: Fields) -> Shape:
    """Nemotron-H and Nemotron 3 (NVIDIA 2025): each layer one of a state space, attention, a feed-forward or experts.

    Embeddings are never tied, whatever the file says; a module that predicts several tokens is left out.
    """
    width = fields.size("hidden_size")
    kinds = _pattern(fields)
    built: dict[str, Layer] = {}
    for kind in dict.fromkeys(kinds):
        if kind == "mamba":
            space = StateSpace(
                width,
                heads=fields.size("mamba_num_heads"),
                head_size=fields.size("mamba_head_dim"),
                state=fields.size("ssm_state_size", default=128),
                groups=fields.size("mamba_n_groups", "n_groups", default=8),
                kernel=fields.size("mamba_d_conv", "conv_kernel", default=4),
                chunk=fields.size("mamba_chunk_size", "chunk_size", default=128),
                bias=fields.flag("use_bias", False),
                convolution_bias=fields.flag("mamba_conv_bias", fields.flag("use_conv_bias", True)),
            )
            _check_groups(fields, space, "n_groups")
            built[kind] = Layer(space, None, 1)
        elif kind == "attention":
            mixer = attention(fields, kv_default=8, head_default=128, query_bias=False, output_bias=False)
            built[kind] = Layer(mixer, None, 1)
        elif kind == "mlp":
            bias = fields.flag("mlp_bias", False)
            forward = FeedForward(width, fields.size("intermediate_size"), gated=False, bias=bias)
            built[kind] = Layer(None, forward, 1)
        else:
            built[kind] = Layer(None, _nemotron_experts(fields, width), 1)
    return Shape(
        name=fields.name,
        family="nemotron_h",
        vocab=fields.size("vocab_size"),
        width=width,
        context=context(fields),
        tied=False,
        layers=tuple(built[kind] for kind in kinds),
    )


def bamba(fields: Fields) -> Shape:
    """Bamba (IBM, Princeton, CMU and UIUC 2024): Llama's layers, with a state space for attention in most."""
    width, depth = fields.size("hidden_size"), fields.depth()
    heads, inner = fields.size("mamba_n_heads", default=128), width * fields.size("mamba_expand", default=2)
    if inner % heads:
        raise fields.fault("mamba_n_heads", f"= {heads} does not divide hidden_size x mamba_expand = {inner}")
    head_size = inner // heads
    if fields.config.get("mamba_d_head", "auto") != "auto" and fields.size("mamba_d_head") != head_size:
        raise fields.fault("mamba_d_head", f"x mamba_n_heads is not hidden_size x mamba_expand = {inner}")
    space = StateSpace(
        width,
        heads=heads,
        head_size=head_size,
        state=fields.size("mamba_d_state", default=256),
        groups=fields.size("mamba_n_groups", default=1),
        kernel=fields.size("mamba_d_conv", default=4),
        chunk=fields.size("mamba_chunk_size", default=256),
        bias=fields.flag("mamba_proj_bias", False),
        convolution_bias=fields.flag("mamba_conv_bias", True),
    )
    _check_groups(fields, space, "mamba_n_groups")
    forward = FeedForward(width, fields.size("intermediate_size"), bias=fields.flag("mlp_bias", False))
    places = set(fields.whole_numbers("attn_layer_indices"))
    if max(places, default=0) >= depth:
        raise fields.fault("attn_layer_indices", f"has {max(places)}; there are num_hidden_layers = {depth}")
    recurrent = Layer(space, forward, 2)
    attending = Layer(attention(fields, kv_default=8), forward, 2) if places else recurrent
    return Shape(
        name=fields.name,
        family="bamba",
        vocab=fields.size("vocab_size"),
        width=width,
        context=context(fields),
        tied=fields.flag("tie_word_embeddings", False),
        layers=tuple(attending if at in places else recurrent for at in range(depth)),
    )


def _nemotron_experts(fields: Fields, width: int) -> Experts:
    count = fields.size("n_routed_experts", "num_local_experts")
    bias = fields.flag("mlp_bias", False)
    shared = fields.size("moe_shared_expert_intermediate_size")
    return Experts(
        width,
        fields.size("moe_intermediate_size"),
        count,
        active_experts(fields, count, 2),
        gated=False,
        shared=FeedForward(width, shared, gated=False, bias=bias),
        latent=fields.optional("moe_latent_size"),
        bias=bias,
    )


def _pattern(fields: Fields) -> list[str]:
    """What each layer is, from a list of names or the older string of letters."""
    for key in ("layers_block_type", "layer_types"):
        names = fields.words(key)
        if names is not None:
            kinds = [OTHER_NAMES.get(name, name) for name in names]
            break
    else:
        key, letters = "hybrid_override_pattern", fields.config.get("hybrid_override_pattern")
        if not isinstance(letters, str):
            raise fields.fault(
                "layers_block_type", "is missing (or hybrid_override_pattern): what each layer is"
            )
        kinds = [LETTERS.get(letter, letter) for letter in letters]
    unknown = sorted(set(kinds) - set(LETTERS.values()))
    if unknown:
        raise fields.fault(key, f"has {unknown[0]!r}; known are {', '.join(LETTERS.values())}")
    if not kinds or len(kinds) > DEEPEST:
        raise fields.fault(key, f"has {len(kinds)} layers")
    depth = fields.depth(default=len(kinds))
    if depth != len(kinds):
        raise fields.fault("num_hidden_layers", f"= {depth}, and {key} has {len(kinds)} layers")
    return kinds


def _check_groups(fields: Fields, space: StateSpace, key: str) -> None:
    if space.heads % space.groups:
        raise fields.fault(
            key, f"= {space.groups} does not divide the {space.heads} heads of the state space"
        )
