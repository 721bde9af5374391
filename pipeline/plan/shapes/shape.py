"""The shape of a language model, and the numbers that follow from it.

A token costs two FLOP for each value of a matrix it is multiplied by (a multiplication and an addition), the output
embedding included and the input embedding not, since that is looked up; then what attention and state spaces mix.
Training costs three times the forward pass: the backward pass has two products for each of the forward's (Kaplan et
al. 2020, section 2.1; Narayanan et al. 2021, appendix).  Additions of biases, norms, activations and softmax are left
out, as they are in published figures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity
from pipeline.plan.shapes.parts import Layer, Part

SHOWN_LENGTH = 4096  # of the sequence that figures without a length are printed for


@dataclass(frozen=True)
class Shape:
    """A decoder: an input embedding, layers, a norm, an output embedding (``head``), which may be the input's.

    ``name``: the file or recipe it was read from; ``context``: longest sequence, None where nothing bounds it.
    """

    name: str
    family: str
    vocab: int
    width: int
    context: int | None
    tied: bool
    layers: tuple[Layer, ...]

    @property
    def depth(self) -> int:
        """Layers."""
        return len(self.layers)

    @cached_property
    def parts(self) -> tuple[tuple[int, Part], ...]:
        """The different parts of the layers, each with how many there are."""
        found = Counter(part for layer in self.layers for part in layer.parts)
        return tuple((count, part) for part, count in found.items())

    # ------------------------------------------------------------------------------- attention

    @property
    def heads(self) -> int:
        """Query heads of an attention layer; 0 in a model without attention."""
        return self._heads[0]

    @property
    def kv_heads(self) -> int:
        """Key and value heads of an attention layer; those that latent attention expands into are its heads."""
        return self._heads[1]

    @property
    def head_size(self) -> int:
        """Values of a query of one head."""
        return self._heads[2]

    @property
    def feed_forward(self) -> int:
        """Inner width of the widest feed-forward, an expert counted by itself; 0 where there is none."""
        return max((part.inner_width for _, part in self.parts), default=0)

    # ------------------------------------------------------------------------------ parameters

    @property
    def embedding_parameters(self) -> int:
        """The input embedding."""
        return self.vocab * self.width

    @property
    def head_parameters(self) -> int:
        """The matrix that logits come from, counted whether or not it is the input embedding's."""
        return self.vocab * self.width

    @cached_property
    def layer_parameters(self) -> int:
        """All layers with their norms."""
        return self._norms + sum(count * part.parameters for count, part in self.parts)

    @cached_property
    def active_layer_parameters(self) -> int:
        """What one token meets of the layers: of experts those it is sent to, and the shared."""
        return self._norms + sum(count * part.active_parameters for count, part in self.parts)

    @property
    def parameters(self) -> int:
        """All parameters of the model, a tied embedding once."""
        return self.layer_parameters + self._outside

    @property
    def active_parameters(self) -> int:
        """Parameters that one token meets, with both embeddings (a tied one once)."""
        return self.active_layer_parameters + self._outside

    # -------------------------------------------------------------------------------- adapters

    def linear_sides(self) -> list[tuple[str, int, int, int]]:
        """``nn.Linear`` modules of the layers: name, inputs, outputs, how many there are in the whole model.

        Experts and their routers are none in transformers, but bare parameters; the output embedding is in no layer.
        """
        sides: Counter[tuple[str, int, int]] = Counter()
        for count, part in self.parts:
            for linear in part.linears:
                if linear.module:
                    sides[linear.name, linear.inner, linear.outer] += count * linear.copies
        return [(*side, copies) for side, copies in sides.items()]

    def adapter_parameters(self, rank: int, targets: Iterable[str]) -> int:
        """Parameters of LoRA adapters (Hu et al. 2021) of a rank on the modules that ``targets`` name.

        ``rank x (inputs + outputs)`` for each module.  A target is a module's name, in which ``*`` stands for anything
        (``q_proj``, ``*_proj``); the place of a layer cannot be part of it.  Raises :class:`UserError` where none fits.
        """
        targets, sides = tuple(targets), self.linear_sides()
        fitting = [side for side in sides if any(_matches(side[0], target) for target in targets)]
        if not fitting:
            names = ", ".join(dict.fromkeys(name for name, *_ in sides))
            raise UserError(
                f"{self.name}: lora.targets {', '.join(targets)} names no linear layer of a {self.family}; it has: {names}"
            )
        return rank * sum(copies * (inner + outer) for _, inner, outer, copies in fitting)

    # ----------------------------------------------------------------------------------- cache

    def cache_bytes_per_token(self, bytes_per_value: float = 2.0) -> float:
        """Bytes that one more token adds to the cache of its sequence, before it outgrows a window."""
        return bytes_per_value * sum(count * part.values_per_token for count, part in self.parts)

    def cache_bytes(self, tokens: int, bytes_per_value: float = 2.0) -> float:
        """Bytes kept of one sequence of so many tokens.

        A layer with a window keeps that many tokens, a state space its state whatever the length; the state itself is
        kept in fp32 (``statespace.py``).
        """
        return sum(count * part.cache_bytes(tokens, bytes_per_value) for count, part in self.parts)

    # ------------------------------------------------------------------------------------ FLOP

    @cached_property
    def active_matmul_weights(self) -> int:
        """Values of the matrices that one token is multiplied by: in the layers, and the head."""
        return self.head_parameters + sum(count * part.active_weights for count, part in self.parts)

    def attention_flops(self, length: int, causal: bool = True) -> float:
        """Forward FLOP a token of scores and values, on the average over a sequence of ``length``.

        Without causality, as eager attention computes them, ``4 x heads x head size x length`` a layer; with it half,
        and no more than a window (:func:`pipeline.plan.shapes.dense.positions_seen`).
        """
        assert length > 0
        return sum(count * part.attention_flops(length, causal) for count, part in self.parts)

    def scan_flops(self, length: int, causal: bool = True) -> float:
        """Forward FLOP a token of the convolutions and scans of state spaces (``statespace.py``)."""
        assert length > 0
        return sum(count * part.scan_flops(length, causal) for count, part in self.parts)

    def forward_flops(self, length: int, causal: bool = True) -> float:
        """Forward FLOP a token in a sequence of ``length``.

        ``causal=False`` is what transformers' modules compute with eager attention; ``causal=True`` is what a kernel
        needs that leaves out what the mask would throw away.
        """
        mixing = self.attention_flops(length, causal) + self.scan_flops(length, causal)
        return 2.0 * self.active_matmul_weights + mixing

    def training_flops(self, length: int, causal: bool = True) -> float:
        """FLOP a token of a training step of all weights: three times the forward pass."""
        return 3.0 * self.forward_flops(length, causal)

    def quantities(self, length: int | None = None) -> list[Quantity]:
        """The figures above with their derivations; FLOP at ``length``, or at 4096 or the shorter context."""
        from pipeline.plan.shapes.derivations import quantities  # which describes a Shape

        return quantities(self, length or min(SHOWN_LENGTH, self.context or SHOWN_LENGTH))

    # ------------------------------------------------------------------------------------- own

    @cached_property
    def _norms(self) -> int:
        return self.width * sum(layer.norms for layer in self.layers)

    @property
    def _outside(self) -> int:
        """Embeddings and the last norm."""
        head = 0 if self.tied else self.head_parameters
        return self.embedding_parameters + head + self.width

    @cached_property
    def _heads(self) -> tuple[int, int, int]:
        found = (part.attention_heads for _, part in self.parts)
        return next((heads for heads in found if heads is not None), (0, 0, 0))


def _matches(name: str, target: str) -> bool:
    """Whether a target names a module, or, beginning with ``*.``, a module anywhere."""
    return fnmatchcase(name, target) or fnmatchcase(f".{name}", target)
