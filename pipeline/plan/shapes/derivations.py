"""The figures of a :class:`~pipeline.plan.shapes.shape.Shape`, each with what it was worked out from."""

from __future__ import annotations

from pipeline.plan.quantity import Quantity, given, total
from pipeline.plan.shapes.parts import Part
from pipeline.plan.shapes.shape import Shape

COSTS = "Kaplan et al. 2020, section 2.1"


def quantities(shape: Shape, length: int) -> list[Quantity]:
    """Parameters by part, those of one token, cache bytes and FLOP of one token in a sequence of ``length``."""
    parameters = _parameters(shape)
    forward = _forward(shape, length)
    return [
        parameters,
        _active(shape, parameters),
        _cache(shape),
        forward,
        Quantity(
            "training FLOP per token",
            shape.training_flops(length),
            "FLOP/token",
            "3 x forward FLOP per token",
            (forward,),
            COSTS,
        ),
    ]


def _parameters(shape: Shape) -> Quantity:
    vocab = given("vocabulary", shape.vocab, source=shape.name)
    width = given("width", shape.width, source=shape.name)
    table, sides = "vocabulary x width", (vocab, width)
    embedding = Quantity("input embedding", shape.embedding_parameters, "parameter", table, sides)
    norms = given(
        "norms", 1 + sum(layer.norms for layer in shape.layers), source="of the layers, and the last"
    )
    kinds: dict[str, list[Quantity]] = {}
    for count, part in shape.parts:
        kinds.setdefault(part.words, []).append(_times(shape, count, part))
    head = Quantity("output embedding", shape.head_parameters, "parameter", table, sides)
    tied = given("output embedding", 0, "parameter", f"tied to the input embedding; {shape.name}")
    return total(
        "parameters",
        (
            embedding,
            *(found[0] if len(found) == 1 else total(kind, tuple(found)) for kind, found in kinds.items()),
            Quantity("norms", norms.value * shape.width, "parameter", "norms x width", (norms, width)),
            tied if shape.tied else head,
        ),
    )


def _times(shape: Shape, count: int, part: Part) -> Quantity:
    """The parameters of one part in all layers that have it."""
    matrices = tuple(
        Quantity(
            linear.name,
            linear.parameters,
            "parameter",
            f"{linear.copies} x " * (linear.copies > 1)
            + f"{linear.inner} x {linear.outer}"
            + f" + {linear.outer} of bias" * linear.bias,
            source=shape.name,
        )
        for linear in part.linears
    )
    if part.vectors:
        matrices += (given("norms, constants, convolution", part.vectors, "parameter", shape.name),)
    layers = given("layers", count, source=shape.name)
    one = total("one layer's", matrices)
    return Quantity(part.words, count * part.parameters, "parameter", "layers x one layer's", (layers, one))


def _active(shape: Shape, parameters: Quantity) -> Quantity:
    idle = tuple(
        Quantity(
            f"experts that a token is not sent to, {count} layers",
            count * (part.parameters - part.active_parameters),
            "parameter",
            "layers x (experts - experts per token) x one expert",
            source=shape.name,
        )
        for count, part in shape.parts
        if part.parameters > part.active_parameters
    )
    formula = "parameters - idle experts" if idle else "parameters"
    whole = given("parameters", parameters.value, "parameter", "above")
    return Quantity("active parameters", shape.active_parameters, "parameter", formula, (whole, *idle))


def _cache(shape: Shape) -> Quantity:
    kept = tuple(
        given(
            f"values of a token in {part.words}, {count} layers",
            count * part.values_per_token,
            "",
            shape.name,
        )
        for count, part in shape.parts
        if part.values_per_token
    )
    formula = "2 B x values" if kept else "a state of constant size, whatever the length"
    return Quantity("cache per token", shape.cache_bytes_per_token(), "B/token", formula, kept)


def _forward(shape: Shape, length: int) -> Quantity:
    tokens = given("sequence length", length, "token")
    weights = given("weights of the matrices a token meets", shape.active_matmul_weights, "", shape.name)
    costs = [
        Quantity(
            "matrices", 2.0 * shape.active_matmul_weights, "FLOP/token", "2 x weights", (weights,), COSTS
        )
    ]
    if shape.heads:
        costs.append(
            Quantity(
                "scores and values",
                shape.attention_flops(length),
                "FLOP/token",
                "for each layer 2 x heads x (size of keys + of values) x positions seen: half the length, or the window",
                (tokens, given("heads", shape.heads, source=shape.name)),
                "causal attention; pipeline/plan/shapes/dense.py",
            )
        )
    if shape.scan_flops(length):
        costs.append(
            Quantity(
                "state spaces",
                shape.scan_flops(length),
                "FLOP/token",
                "for each layer its convolution and chunked scan",
                (tokens,),
                "Dao and Gu 2024, section 6; pipeline/plan/shapes/statespace.py",
            )
        )
    return total("forward FLOP per token", tuple(costs), COSTS)
