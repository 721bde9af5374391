"""What a training step did: real tokens, and the floating-point operations that they need.

The same count for every contender, whatever it computes besides (padding, logits of the
prompt, activations computed again, a reference policy): it is the work that was wanted.
Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Shape:
    """Of a Llama, by the names of a recipe's ``model`` section."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int = 0

    @classmethod
    def of(cls, model: dict[str, Any]) -> Shape:
        """From a ``model`` section, which has more."""
        return cls(**{name: model[name] for name in cls.__dataclass_fields__ if name in model})

    @property
    def attention_width(self) -> int:
        """All query heads together."""
        return self.heads * (self.head_dim or self.hidden_size // self.heads)

    @property
    def layer_weights(self) -> int:
        """Weights of all layers' matrices: each takes two operations a token in the forward pass."""
        kv = self.attention_width * self.kv_heads // self.heads
        attention = 2 * self.hidden_size * (self.attention_width + kv)
        return self.layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def output_weights(self) -> int:
        """Of the output layer; looking a token up in the embedding costs nothing."""
        return self.vocab_size * self.hidden_size


@dataclass(frozen=True)
class Work:
    """Real input tokens, the sum of the squares of the sequences' lengths, and labelled tokens."""

    tokens: int = 0
    squares: int = 0
    labels: int = 0

    @classmethod
    def of(cls, lengths: list[int], labels: int) -> Work:
        """Of sequences of these lengths in tokens."""
        return cls(sum(lengths), sum(length * length for length in lengths), labels)

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.squares + other.squares, self.labels + other.labels)

    def flops(self, shape: Shape, *, frozen: bool = False, head_frozen: bool | None = None) -> float:
        """Forward and backward pass: 6 a weight and token, and attention.

        The output layer counts at the labelled tokens.  Causal attention is
        ``2 * n^2 * width`` forward in a layer and twice that backward (half of the full
        products, for half is masked).  ``frozen``: the layers' weights get no gradient, as
        under adapters, which leaves 4 a weight and token; the output layer's likewise.
        """
        each = 4 if frozen else 6
        head = 4 if (frozen if head_frozen is None else head_frozen) else 6
        return (
            each * shape.layer_weights * self.tokens
            + head * shape.output_weights * self.labels
            + 6 * shape.layers * shape.attention_width * self.squares
        )
