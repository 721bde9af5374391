"""Attention for sequences laid end to end in one row, each attending to itself only.

Every other layer of a model works position by position, so a micro batch needs no padding
there; attention is where one sequence would see another.  Here it never does, on any
device, and without flash-attention: on CUDA by PyTorch's own variable-length kernel (not
executed here: no GPU), elsewhere by taking the sequences apart into a padded batch for the
time of the product.  Positions restart with every sequence.  The boundaries travel through the model under
the names that Hugging Face gives them (``cu_seq_lens_q``, ``max_length_q``).

On a CPU in bf16 the products of short sequences are taken one by one instead of by PyTorch's
fused kernel, whose backward pass is eight times its forward pass there: 64 sequences of 55
tokens, 6 heads on 3, took 7.7 ms of processor time forward and backward instead of 51.5, 16
of 256 tokens 19.5 instead of 52.3 (one core of an AMD EPYC, torch 2.13).  It had been 46% of a
fine-tuning step of ``llama-tiny``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from pipeline.stages.step import InputError

SCORES = 1 << 26  # the most attention scores that are held at once (128 MB in bf16)
UNKNOWN = ("softcap", "s_aux")  # what some models do with their scores, and this does not
NAME = "packed"  # of the attention implementation, as a model's configuration names it


def register() -> None:
    """Make :func:`packed_attention` known to transformers; models are loaded with it by ``NAME``."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, lambda *_, **__: None)  # boundaries are all the mask there is


def boundaries(lengths: Any) -> dict[str, Any]:
    """What :func:`packed_attention` needs to know, as keyword arguments of the model's forward pass.

    ``lengths`` is ``int [sequences]``.  ``cu_seq_lens_*`` are ``int32 [sequences + 1]``.
    """
    ends = functional.pad(torch.cumsum(lengths, 0), (1, 0)).to(torch.int32)
    longest = int(lengths.max())
    return {
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def packed_attention(
    module: Any,
    query: Any,
    key: Any,
    value: Any,
    attention_mask: Any,
    *,
    cu_seq_lens_q: Any = None,
    max_length_q: int | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **named: Any,
) -> tuple[Any, None]:
    """Causal attention within each sequence.

    ``query`` is ``[1, heads, tokens, width]``, ``key`` and ``value`` have as many heads or a
    divisor of it (grouped queries).  Returns ``[1, tokens, heads, width]`` and no weights,
    as transformers' attention interface wants it.  Without boundaries the rows are one
    sequence each, ``[sequences, heads, tokens, width]``.  Raises :class:`InputError` for a model whose
    attention does more than that.
    """
    longest = query.shape[2] if max_length_q is None else max_length_q
    windowed = sliding_window is not None and sliding_window < longest
    if windowed or any(named.get(name) is not None for name in UNKNOWN):
        raise InputError(
            "this model's attention looks through a window or changes its scores, which training on a CPU, and "
            "packing, know nothing of: train it on a GPU with packing off"
        )
    query, key, value = _narrowed(query, key, value)
    grouped = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None:
        return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None
    assert max_length_q is not None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        flat = (side[0].transpose(0, 1).contiguous() for side in (query, key, value))
        bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        output = varlen_attn(*flat, *bounds, scale=scaling, window_size=(-1, 0), enable_gqa=grouped)
        return output[None], None
    places, inside = _places(cu_seq_lens_q, max_length_q)
    query, key, value = (_padded(side, places) for side in (query, key, value))
    output = causal_attention(query, key, value, scaling).transpose(1, 2).flatten(0, 1)
    return output.index_select(0, inside)[None], None


def causal_attention(query: Any, key: Any, value: Any, scaling: float | None = None) -> Any:
    """Causal attention in each sequence: ``[sequences, heads, tokens, width]``, keys' heads grouped."""
    count, heads, tokens, width = query.shape
    kept = key.shape[1]
    if (
        query.device.type != "cpu"
        or query.dtype != torch.bfloat16
        or count * heads * tokens * tokens > SCORES
        or not torch.is_grad_enabled()  # forward alone the fused kernel is as quick, and needs less memory
    ):
        return functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=heads != kept
        )
    # The heads that share a key stand below each other, so that no key is repeated.
    stacked = query.reshape(count * kept, heads // kept * tokens, width)
    keys, values = (side.reshape(count * kept, tokens, width) for side in (key, value))
    mask = torch.full((tokens, tokens), -torch.inf, dtype=query.dtype).triu(1).repeat(heads // kept, 1)
    scale = width**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(mask, stacked, keys.transpose(1, 2), alpha=scale)
    return (scores.softmax(-1) @ values).view(query.shape)


def _narrowed(*sides: Any) -> tuple[Any, ...]:
    """The sides in autocast's precision, where it is on: rotary positions leave queries and keys in fp32.

    PyTorch's fused attention does the same; the kernels here would take fp32 at its word.
    """
    kind = sides[0].device.type
    if not torch.is_autocast_enabled(kind):
        return sides
    return tuple(side.to(torch.get_autocast_dtype(kind)) for side in sides)


def _places(ends: Any, longest: int) -> tuple[Any, Any]:
    """Where each place of the padded batch is in the row, and each place of the row in the batch.

    ``int64 [sequences, longest]`` and ``int64 [tokens]``.  A place beyond its sequence's end
    points at the sequence's last token: it is attended to by nothing that is kept, for it
    stands after every real token.
    """
    steps = torch.arange(longest, device=ends.device)
    lengths = (ends[1:] - ends[:-1]).long()
    places = ends[:-1].long()[:, None] + torch.minimum(steps, lengths[:, None] - 1)
    inside = (steps < lengths[:, None]).flatten().nonzero()[:, 0]
    return places, inside


def _padded(side: Any, places: Any) -> Any:
    """``[1, heads, tokens, width]`` as ``[sequences, heads, longest, width]``."""
    rows = side[0].transpose(0, 1).index_select(0, places.flatten())
    return rows.unflatten(0, places.shape).transpose(1, 2)
