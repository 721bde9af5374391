"""What is trained and how, in the words of this package; a layer's matrices and all parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.schema.training import Align, Lora, Model, Optimisation, Reward

SCORES = 1 << 26  # attention scores that a CPU keeps at once (engines/automodel/packing.py)


@dataclass(frozen=True)
class Batch:
    """A micro batch: ``sequences`` of at most ``length`` tokens, ``tokens`` with padding, ``labels`` of them learned."""

    sequences: int
    length: int
    tokens: int
    labels: int


@dataclass(frozen=True)
class Linear:
    """A matrix of a layer, and whether an adapter is on it (``learned``: its input is kept for a gradient)."""

    name: str
    inner: int
    outer: int
    learned: bool
    rank: int = 0


@dataclass(frozen=True)
class Setting:
    """What is trained and how, in the words of this module."""

    model: Model
    batch: Batch
    mode: str  # fp32, autocast, bf16
    kept: str  # none, selective, layers, parts: what recomputation leaves
    device: str
    adapted: bool
    lora: Lora
    packed: bool
    reward: bool
    whole: bool  # logits of all labels at once, not a block's
    several: bool  # processes: the whole model is called, and its logits are of all tokens
    tensor: int = 1
    narrow: int = 1

    @property
    def element(self) -> int:
        """Bytes of a number between matrices."""
        return 4 if self.mode == "fp32" else 2

    @property
    def stream(self) -> int:
        """Bytes of a number between layers."""
        return 2 if self.mode == "bf16" else 4

    @property
    def head_size(self) -> int:
        """Width of an attention head."""
        return self.model.hidden_size // self.model.heads

    @property
    def scores(self) -> float:
        """Attention scores that are kept, numbers a token; 0 where a fused kernel keeps none."""
        batch, heads = self.batch, self.model.heads
        fits = batch.sequences * heads * batch.length**2 <= SCORES
        return heads * batch.length if self.device == "cpu" and self.mode != "fp32" and fits else 0

    @property
    def padded(self) -> bool:
        """Whether packed sequences are taken apart into a padded batch for attention: on a CPU."""
        return self.packed and self.device == "cpu"

    @property
    def gathers_labels(self) -> bool:
        """Whether logits are of labelled positions only: of a single row, Hugging Face's model takes them so."""
        return self.packed or self.batch.sequences == 1 or not self.several


def setting_of(
    model: Model, settings: Optimisation, processes: int, device: str = "cuda", batch: Batch | None = None
) -> Setting:
    """The settings of a stage in the words of this module."""
    shape = settings.parallel
    sharded = shape.strategy == "fsdp2" and processes > 1
    precision = {"auto": "bf16"}.get(settings.precision, settings.precision)
    mode = {"fp32": "fp32", "bf16": "bf16" if sharded else "autocast", "bf16-weights": "bf16"}[precision]
    kept = {"full": "parts" if processes > 1 and not sharded else "layers"}.get(
        shape.recompute, shape.recompute
    )
    if batch is None:
        sides = 1
        if isinstance(settings, Align):
            sides = 3 if settings.loss == "kto" else 2
        elif isinstance(settings, Reward):
            sides = 2
        sequences, length = settings.micro_batch_size * sides, math.ceil(model.context / shape.context)
        batch = Batch(sequences, length, sequences * length, sequences * length)
    return Setting(
        model=model,
        batch=batch,
        mode=mode,
        kept=kept,
        device=device,
        adapted=getattr(settings, "peft", "none") != "none",
        lora=getattr(settings, "lora", Lora()),
        packed=settings.packing,
        reward=isinstance(settings, Reward),
        whole=processes > 1 or isinstance(settings, Align),
        several=processes > 1,
        tensor=shape.tensor,
        narrow=shape.tensor if shape.sequence else 1,
    )


def parameters(model: Model, reward: bool = False) -> int:
    """Parameters of a Llama of this shape, exactly; with a scalar head in place of the output layer for a reward model."""
    matrices = sum(linear.inner * linear.outer for linear in linears(model))
    embedding = model.vocab_size * model.hidden_size
    head = model.hidden_size if reward else 0 if model.tie_embeddings else embedding
    return embedding + head + model.layers * (matrices + 2 * model.hidden_size) + model.hidden_size


def adapter_parameters(setting: Setting) -> int:
    """Parameters of all adapters: rank x (inputs + outputs) of each matrix that has one."""
    found = linears(setting.model, setting.lora, setting.adapted)
    return setting.model.layers * sum(one.rank * (one.inner + one.outer) for one in found)


def linears(model: Model, lora: Lora | None = None, adapted: bool = False) -> tuple[Linear, ...]:
    """The matrices of a layer in the order in which they are multiplied by."""
    width, narrow = model.hidden_size, model.kv_heads * (model.hidden_size // model.heads)
    wide = model.intermediate_size
    sizes = (
        ("self_attn.q_proj", width, width),
        ("self_attn.k_proj", width, narrow),
        ("self_attn.v_proj", width, narrow),
        ("self_attn.o_proj", width, width),
        ("mlp.gate_proj", width, wide),
        ("mlp.up_proj", width, wide),
        ("mlp.down_proj", wide, width),
    )
    made = []
    for path, inner, outer in sizes:
        # AutoModel matches whole names of modules; which layer it is makes no difference here.
        on = (
            adapted
            and lora is not None
            and any(fnmatchcase(f"model.layers.0.{path}", t) for t in lora.targets)
        )
        name, rank = path.rpartition(".")[2], lora.rank if on and lora is not None else 0
        made.append(Linear(name, inner, outer, on or not adapted, rank))
    return tuple(made)
