"""Attention for sequences laid end to end in one row, each attending to itself only.

Every other layer of a model works position by position, so a micro batch needs no padding
there; attention is where one sequence would see another.  Here it never does, on any
device, and without flash-attention: on CUDA by PyTorch's own variable-length kernel (not
executed here: no GPU), elsewhere by taking the sequences apart into a padded batch for the
time of the product.  Positions restart with every sequence.  The boundaries travel through the model under
the names that Hugging Face gives them (``cu_seq_lens_q``, ``max_length_q``).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

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
    **_: Any,
) -> tuple[Any, None]:
    """Causal attention within each sequence.

    ``query`` is ``[1, heads, tokens, width]``, ``key`` and ``value`` have as many heads or a
    divisor of it (grouped queries).  Returns ``[1, tokens, heads, width]`` and no weights,
    as transformers' attention interface wants it.  Without boundaries the rows are one
    sequence each, ``[sequences, heads, tokens, width]``.
    """
    grouped = query.shape[1] != key.shape[1]
    if cu_seq_lens_q is None:
        output = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        return output.transpose(1, 2).contiguous(), None
    assert max_length_q is not None
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        from torch.nn.attention.varlen import varlen_attn

        flat = (side[0].transpose(0, 1).contiguous() for side in (query, key, value))
        bounds = (cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q)
        output = varlen_attn(*flat, *bounds, scale=scaling, window_size=(-1, 0), enable_gqa=grouped)
        return output[None], None
    places, inside = _places(cu_seq_lens_q, max_length_q)
    sides = (_padded(side, places) for side in (query, key, value))
    output = functional.scaled_dot_product_attention(
        *sides, is_causal=True, scale=scaling, enable_gqa=grouped
    )
    output = output.transpose(1, 2).flatten(0, 1)
    return output.index_select(0, inside)[None], None


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
