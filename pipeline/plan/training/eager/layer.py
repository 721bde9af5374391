"""What autograd keeps of a decoder layer, tensor by tensor, in bytes a token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.plan.training.eager.setting import Linear, Setting, linears


@dataclass(frozen=True)
class Term:
    """A tensor that autograd keeps: its bytes a token, what keeps it, and which part of the layer it belongs to."""

    name: str
    bytes: float
    part: str  # norm1, attention, norm2, mlp


def layer(setting: Setting, *, first: bool = False) -> list[Term]:
    """What autograd keeps of a decoder layer, in the order in which it is computed.

    In the ``first`` layer under adapters nothing before them needs a gradient: the embeddings are frozen.
    """
    found, by_name = linears(setting.model, setting.lora, setting.adapted), {}
    for linear in found:
        by_name[linear.name] = linear
    width = setting.model.hidden_size / setting.narrow
    inner = setting.model.intermediate_size / setting.tensor
    wants = not (first and setting.adapted)
    return [
        *norm(setting, "norm1", wants),
        *_inputs(setting, "attention", width, [by_name[n] for n in ("q_proj", "k_proj", "v_proj")]),
        *_attention(setting, by_name["o_proj"]),
        *norm(setting, "norm2", True),
        *_inputs(setting, "mlp", width, [by_name[n] for n in ("gate_proj", "up_proj")]),
        # silu keeps its input; the product keeps both its sides; the last matrix keeps the product.
        Term("gate", setting.element * inner, "mlp"),
        Term("up", setting.element * inner, "mlp"),
        Term("activated gate", setting.element * inner, "mlp"),
        *([Term("gated product", setting.element * inner, "mlp")] if by_name["down_proj"].learned else []),
        *_adapters(setting, found),
    ]


def norm(setting: Setting, part: str, wants: bool) -> list[Term]:
    """RMSNorm in fp32: ``weight * (x * rsqrt(mean(x ** 2) + eps))``."""
    width = setting.model.hidden_size / setting.narrow
    kept = []
    if wants:
        # pow and mul keep x: the stream itself where that is fp32, else an fp32 copy of it.
        kept += [Term("input in fp32", 4 * width, part), Term("rsqrt", 4, part)]
    if not setting.adapted:  # for the gradient of the norm's weight
        kept.append(Term("normalised", setting.stream * width, part))
    return kept


def _inputs(setting: Setting, part: str, width: float, rising: list[Linear]) -> list[Term]:
    """What matrices (an adapter's first one, where there is one) keep of their common input."""
    learned = [linear for linear in rising if linear.learned]
    if setting.mode == "autocast":  # which casts the input anew for every one of them
        return [Term(f"input of {linear.name} in bf16", 2 * width, part) for linear in learned]
    return [Term("normed input", setting.element * width, part)] if learned else []


def _attention(setting: Setting, output: Linear) -> list[Term]:
    """Queries and keys after rotary positions (which keep only cosines and sines), values, and what attention gives."""
    narrow, size = setting.tensor, setting.head_size
    queries, keys = setting.model.heads * size / narrow, setting.model.kv_heads * size / narrow
    element = setting.element
    padded = setting.batch.sequences * setting.batch.length / setting.batch.tokens if setting.padded else 1.0
    kept = [
        Term("queries", padded * element * queries, "attention"),
        Term("keys", padded * element * keys, "attention"),
        Term("values", padded * element * keys, "attention"),
    ]
    if setting.scores:
        # Products taken one by one: softmax keeps what it gives; the output is made contiguous for the last matrix.
        kept.append(Term("attention's shares", padded * 2 * setting.scores / narrow, "attention"))
        if output.learned:
            kept.append(Term("attention's output", element * queries, "attention"))
        return kept
    kept.append(Term("normalisers", padded * 4 * setting.model.heads / narrow, "attention"))
    kept.append(Term("attention's output", padded * element * queries, "attention"))
    if setting.padded and output.learned:
        kept.append(Term("output without padding", element * queries, "attention"))
    return kept


def _adapters(setting: Setting, found: Iterable[Linear]) -> list[Term]:
    """What adapters keep besides their input: that of their second matrix, and dropout's mask."""
    kept = []
    for linear in found:
        part = "mlp" if linear.name in ("gate_proj", "up_proj", "down_proj") else "attention"
        if linear.rank:
            kept.append(Term(f"adapter of {linear.name}", setting.element * linear.rank, part))
            if setting.lora.dropout:
                kept.append(Term(f"dropout of {linear.name}", linear.outer / setting.tensor, part))
    return kept


def products(setting: Setting) -> list[tuple[str, float]]:
    """What ``selective`` keeps of a layer, bytes a token: every second matrix product, and what attention gives."""
    made: list[tuple[str, float]] = []
    for linear in linears(setting.model, setting.lora, setting.adapted):
        made.append((linear.name, setting.element * linear.outer / setting.tensor))
        if linear.rank:
            made.append((f"{linear.name}.A", setting.element * linear.rank))
            made.append((f"{linear.name}.B", setting.element * linear.outer / setting.tensor))
    return made[::2]


def total(terms: Iterable[Term], *parts: str) -> float:
    """Bytes a token of terms, or of those of some parts."""
    return sum(term.bytes for term in terms if not parts or term.part in parts)
