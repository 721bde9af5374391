"""What a layer is built of, and what the planner asks of it.

A :class:`Part` is one half of a layer: a mixer, which moves information between positions (attention, a state space), or
a feed-forward, which works on each position by itself.  Each names its matrices, from which come its parameters, the
matmul FLOP of one token and the sides of LoRA adapters; a mixer also says what it keeps of a sequence in the cache and
what mixing costs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Linear:
    """A matrix of ``outer x inner`` values that a token's activations are multiplied by.

    There are ``copies`` of it, ``used`` of which one token meets (all of them unless it is an expert's).  ``module``:
    whether transformers builds it as an ``nn.Linear``, which an adapter can be put beside; experts and routers are bare
    parameters there.
    """

    name: str
    inner: int
    outer: int
    bias: bool = False
    copies: int = 1
    used: int | None = None
    module: bool = True

    @property
    def weights(self) -> int:
        """Values of one copy, its bias left out."""
        return self.inner * self.outer

    @property
    def parameters(self) -> int:
        """Values of all copies."""
        return self.copies * (self.weights + (self.outer if self.bias else 0))

    @property
    def active_parameters(self) -> int:
        """Values that one token meets."""
        return self.active * (self.weights + (self.outer if self.bias else 0))

    @property
    def active(self) -> int:
        """Copies that one token meets."""
        return self.copies if self.used is None else self.used


@dataclass(frozen=True)
class Part:
    """A mixer or a feed-forward: matrices, and what else it has; ``words`` is its kind for a reader."""

    words: ClassVar[str] = ""

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Its matrices."""
        raise NotImplementedError

    @property
    def vectors(self) -> int:
        """Parameters that are no matrix: norms inside the part, convolutions, the constants of a state space."""
        return 0

    @property
    def parameters(self) -> int:
        """All of them."""
        return sum(linear.parameters for linear in self.linears) + self.vectors

    @property
    def active_parameters(self) -> int:
        """Those that one token meets."""
        return sum(linear.active_parameters for linear in self.linears) + self.vectors

    @property
    def active_weights(self) -> int:
        """Values of the matrices that one token is multiplied by, two FLOP each."""
        return sum(linear.active * linear.weights for linear in self.linears)

    @property
    def values_per_token(self) -> int:
        """Values that one more token leaves in the cache, while it is inside the window."""
        return 0

    def cache_bytes(self, tokens: int, bytes_per_value: float) -> float:
        """What is kept of a sequence of so many tokens."""
        return tokens * self.values_per_token * bytes_per_value

    def attention_flops(self, length: int, causal: bool) -> float:
        """FLOP a token, forward, of scores and values in a sequence of this length."""
        return 0.0

    def scan_flops(self, length: int, causal: bool) -> float:
        """FLOP a token, forward, of a state space's convolution and scan in a sequence of this length."""
        return 0.0

    @property
    def attention_heads(self) -> tuple[int, int, int] | None:
        """Heads, key and value heads and the size of one, where there is attention."""
        return None

    @property
    def inner_width(self) -> int:
        """Width between the two matrices of a feed-forward, of one expert where there are experts."""
        return 0


@dataclass(frozen=True)
class Layer:
    """One layer: a mixer or none, a feed-forward or none, and the norms around them, each as wide as the model."""

    mixer: Part | None
    feed_forward: Part | None
    norms: int

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those that there are."""
        return tuple(part for part in (self.mixer, self.feed_forward) if part is not None)
