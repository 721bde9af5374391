"""Activations at the moments of a step at which they can be at their highest, and everything at its highest together."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.plan.training.eager.layer import Term, layer, norm, products, total
from pipeline.plan.training.eager.loss import logits_bytes, pending
from pipeline.plan.training.eager.setting import Setting


def passing_bytes(setting: Setting, live: bool, buffers: float, gradients: float, accumulated: bool) -> float:
    """The highest moment of all that comes and goes.

    Logits are at their highest with what the forward pass kept, and gone in the backward pass, but for the
    gradient of tied embeddings.  With several micro batches a step, gradients are there from the second one on.
    """
    found = moments(setting, live)
    during = found.pop("loss") + logits_bytes(setting, live)
    scored = 4 * setting.model.vocab_size * setting.batch.labels  # the policy's log-softmax
    during = max(during, found.pop("reference", -scored) + scored)
    after = max(found.values()) + pending(setting)
    both = max(during, after) + buffers
    return both + gradients if accumulated else max(both, gradients + buffers)


def moments(setting: Setting, live: bool = False) -> dict[str, float]:
    """Bytes of activations at each moment at which they can be at their highest."""
    model, batch, b = setting.model, setting.batch, setting.element
    width, tokens = model.hidden_size / setting.narrow, batch.tokens
    stream = setting.stream * width
    inner, queries = model.intermediate_size / setting.tensor, model.hidden_size / setting.tensor
    terms = layer(setting)
    before, recomputed = _kept(setting, terms)
    # The last norm keeps what any norm does; the output layer keeps its input where it learns.
    ending = total(norm(setting, "norm1", True))
    own = 0 if setting.adapted else b
    if not setting.whole:
        last = batch.labels * width * 2 * b  # hidden states at the labels, and their gradient
    else:
        last = (tokens if setting.several and not setting.gathers_labels else batch.labels) * width * own
    # A working set of the backward pass of a norm: the gradient through x, and four tensors on the way through the mean.
    found = {"loss": tokens * (before + ending) + last, "last norm": tokens * (before + (4 + 5 * 4) * width)}
    if live:  # the reference's feed-forward, while everything of the policy is kept
        found["reference"] = tokens * (before + ending + 2 * stream + b * 3 * inner) + last
    product = total(t for t in terms if t.name == "gated product")
    gradient = stream  # of the stream, which the residual connection hands on
    found["gated product"] = tokens * (before + recomputed("mlp") - product + gradient + 3 * b * inner)
    copied = "attention's output" if setting.scores else "output without padding"
    output = total(t for t in terms if t.name == copied)
    scores = 2 * 2 * setting.scores / setting.tensor
    found["attention"] = tokens * (
        before + recomputed("attention") - output + gradient + 2 * b * queries + scores
    )
    return {name: bytes_ + _rotary(setting) for name, bytes_ in found.items()}


def _kept(setting: Setting, terms: list[Term]) -> tuple[float, Callable[[str], float]]:
    """Bytes a token that all layers keep, and what is there besides in the last layer's backward pass by its part."""
    depth, stream = setting.model.layers, setting.stream * setting.model.hidden_size / setting.narrow
    after = total(terms, "norm2", "mlp")  # gone when attention's backward pass is at its highest
    # The input that a norm keeps is the one that a checkpoint does.
    shared = 0.0 if setting.mode == "bf16" else stream
    if setting.kept == "none":
        before = total(layer(setting, first=True)) + (depth - 1) * total(terms)
        return before, lambda part: 0.0 if part == "mlp" else -after
    if setting.kept == "layers":
        again = total(terms) - shared
        return depth * stream, lambda part: again if part == "mlp" else again - after
    if setting.kept == "parts":
        own = {part: total(terms, part) for part in ("mlp", "attention")}
        if setting.mode != "autocast":  # the matrices' input is the checkpoint's
            own = {part: bytes_ - stream for part, bytes_ in own.items()}
        # Where the embeddings are frozen, nothing in front of the first attention needs a gradient.
        inputs = 4 * depth - (1 if setting.adapted else 0)
        return inputs * stream, lambda part: own[part] - (0.0 if part == "mlp" else 2 * stream)
    cached = products(setting)
    given = total(term for term in terms if term.name in ("normalisers", "attention's output"))
    if setting.scores:  # the product with the values, before it is made contiguous
        given = setting.element * setting.model.hidden_size / setting.tensor
    # Taken from the cache in computing the layer again; the last matrix is not computed again.
    taken = given + sum(bytes_ for name, bytes_ in cached if not name.startswith("down_proj"))
    again = total(terms) - shared - taken
    before = depth * (stream + given + sum(bytes_ for _, bytes_ in cached))
    return before, lambda part: again if part == "mlp" else again - after


def _rotary(setting: Setting) -> float:
    """Cosines and sines, which all layers share."""
    positions = setting.batch.tokens if setting.packed else setting.batch.length
    return 2 * positions * setting.head_size * setting.stream
