"""Memory of a training step on each GPU: an estimate from shapes, good enough to refuse by.

Bytes a parameter: weights 4 (fp32 under autocast) or 2 (bf16); for what is trained, gradients of the
same size and AdamW's two moments (Rajbhandari et al. 2020, "ZeRO", section 3.1); a test holds these to the
tensors of a real step.  Buffers: DDP's buckets are as large as the gradients; autocast keeps bf16 copies
of fp32 weights; FSDP2 holds two layers and the embeddings gathered.  Activations of a layer, a token: ``10 +
24 / tensor`` bytes x width, all of it divided with sequence parallelism (Korthikanti et al. 2022,
equations 2 to 4, attention computed anew by its kernel); with full recomputation one such layer, and 2
bytes x width for every other.  Logits, a token: bf16 and fp32, their log-softmax and both gradients, 16 bytes
x vocabulary; of a block of positions only for next-token training in one process
(``engines/automodel/linear_loss.py``).  A tenth is added for fragmentation, and 1.5 GB for the CUDA
context and communication.  Nothing here was held to a GPU.

Steps that only read a model (:func:`reading`) spread it over their GPUs, 2 bytes a parameter, or hold it in main
memory, 4 bytes; the export writes its bundle from main memory, and then has two models in fp32 beside each other: the
bundle's on GPUs where there are any, and what the written checkpoint means in main memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import schema
from pipeline.schema.training import Model, Optimisation

GB = 1e9
CONTEXT_BYTES = 1.5 * GB
FRAGMENTATION = 1.1
NF4 = 0.55  # bytes a weight, with its scales (Dettmers et al. 2023, section 3)
LOGITS = 16  # bytes x vocabulary a token
BLOCK = 512  # positions of the output layer at once, in one process


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
    buffers: float

    @property
    def total(self) -> float:
        """Everything, with the margin."""
        parts = (
            self.weights + self.gradients + self.optimiser + self.activations + self.reference + self.buffers
        )
        return parts * FRAGMENTATION + CONTEXT_BYTES


def need(model: Model, settings: Optimisation, processes: int) -> Need:
    """What one of ``processes`` GPUs holds of a training step."""
    peft = getattr(settings, "peft", "none")
    shape = settings.parallel
    split = processes if shape.strategy == "fsdp2" else 1
    held = 2.0 if settings.precision == "bf16-weights" else 4.0
    total = parameters(model)
    trained = total if peft == "none" else adapter_parameters(model, settings.lora.rank)  # type: ignore[attr-defined]
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    layers = NF4 if peft == "qlora" else held
    weights = ((total - embeddings) * layers + embeddings * held) / split
    tokens = settings.micro_batch_size * model.context / shape.context
    if isinstance(settings, schema.Align):
        tokens *= 3 if settings.loss == "kto" else 2
    if isinstance(settings, schema.Reward):
        tokens *= 2
    width, narrow = model.hidden_size, shape.tensor if shape.sequence else 1
    layer = 34 / shape.tensor if shape.sequence else 10 + 24 / shape.tensor
    if shape.recompute == "full":
        activations = tokens * width * (2 * model.layers / narrow + layer)
    else:
        activations = tokens * width * layer * model.layers
    blocks = processes == 1 and not isinstance(settings, schema.Align)
    if not isinstance(settings, schema.Reward):  # its head has one output
        activations += (min(tokens, BLOCK) if blocks else tokens) * model.vocab_size * LOGITS
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
        buffers=_buffers(model, settings, processes, total, trained * held),
    )


def _buffers(model: Model, settings: Optimisation, processes: int, total: int, gradients: float) -> float:
    shape = settings.parallel
    if shape.strategy == "ddp" or processes == 1:
        copies = 2.0 * total if settings.precision in ("auto", "bf16") else 0.0
        return copies + (gradients if processes > 1 else 0.0)
    embeddings = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    layer = (total - embeddings) / model.layers
    return (4.0 if settings.precision == "fp32" else 2.0) * (2 * layer + embeddings) / shape.tensor


@dataclass(frozen=True)
class Held:
    """Bytes that a step holds on all its GPUs together, and in main memory."""

    gpus: float
    main: float


def reading(model: Model, stage: str, gpu_bytes: float) -> Held:
    """What ``sample``, ``evaluate`` or ``export`` holds, with so many bytes on all GPUs together (0: none)."""
    whole = FRAGMENTATION * parameters(model)
    if stage != "export":
        return Held(2 * whole, 0.0) if gpu_bytes else Held(0.0, 4 * whole)
    # The reference goes where there is room, and the rest of it stays in main memory.
    placed = min(4 * whole, gpu_bytes)
    return Held(placed, 4 * whole + 4 * whole - placed)
