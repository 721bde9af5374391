"""Memory of a training step on each GPU: an estimate from shapes, good enough to refuse by.

Bytes a parameter: weights 4 (fp32 under autocast) or 2 (bf16); for what is trained, gradients of the
same size and AdamW's two moments (Rajbhandari et al. 2020, "ZeRO", section 3.1).  Activations with
full recomputation: one bf16 hidden state a layer and the largest layer whole, 34 bytes x width
a token; without, that for every layer (Korthikanti et al. 2022, equation 2, attention recomputed
by its kernel).  The output layer: bf16 and fp32 logits of a block of labelled positions, 6 bytes x
vocabulary a token of the micro batch at worst.  A tenth is added for fragmentation, and 1.5 GB for
the CUDA context and communication buffers.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import schema
from pipeline.schema.training import Model, Optimisation

GB = 1e9
CONTEXT_BYTES = 1.5 * GB
FRAGMENTATION = 1.1
FULL_LAYER = 34  # bytes x width a token


def parameters(model: Model) -> int:
    """Parameters of a Llama of this shape, exactly."""
    width, head = model.hidden_size, model.hidden_size // model.heads
    attention = 2 * width * width + 2 * width * model.kv_heads * head
    layer = attention + 3 * width * model.intermediate_size + 2 * width
    embeddings = model.vocab_size * width * (1 if model.tie_embeddings else 2)
    return embeddings + model.layers * layer + width


def adapter_parameters(model: Model, rank: int) -> int:
    """Parameters of LoRA adapters on all seven projections of every layer."""
    width, head = model.hidden_size, model.hidden_size // model.heads
    narrow, wide = model.kv_heads * head, model.intermediate_size
    sides = [(width, width)] * 2 + [(width, narrow)] * 2 + [(width, wide)] * 3
    return model.layers * rank * sum(inner + outer for inner, outer in sides)


@dataclass(frozen=True)
class Need:
    """Bytes on each GPU."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    reference: float

    @property
    def total(self) -> float:
        """Everything, with the margin."""
        parts = self.weights + self.gradients + self.optimiser + self.activations + self.reference
        return parts * FRAGMENTATION + CONTEXT_BYTES


def need(model: Model, settings: Optimisation, processes: int) -> Need:
    """What one of ``processes`` GPUs holds of a training step."""
    peft = getattr(settings, "peft", "none")
    shape = settings.parallel
    split = processes if shape.strategy == "fsdp2" else 1
    held = 2.0 if settings.precision == "bf16-weights" else 4.0
    total = parameters(model)
    trained = total if peft == "none" else adapter_parameters(model, settings.lora.rank)  # type: ignore[attr-defined]
    weights = total * (0.55 if peft == "qlora" else held) / split  # NF4 and its scales
    tokens = settings.micro_batch_size * model.context / (shape.tensor * shape.context)
    if isinstance(settings, schema.Align):
        tokens *= 2
    width = model.hidden_size
    if shape.recompute == "full":
        activations = tokens * width * (2 * model.layers + FULL_LAYER)
    else:
        activations = tokens * width * FULL_LAYER * model.layers
    activations += tokens * model.vocab_size * 6
    frozen = (
        isinstance(settings, schema.Align)
        and peft == "none"
        and (settings.exact_kl or settings.reference == "live")
    )
    return Need(
        weights=weights,
        gradients=trained * held / split,
        optimiser=trained * 2 * held / split,
        activations=activations,
        reference=weights if frozen else 0.0,
    )
