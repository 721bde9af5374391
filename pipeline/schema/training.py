"""The settings of the model, and of pre-training, fine-tuning and alignment."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.schema.declare import setting


@dataclass
class Model:
    """The model's shape (Hugging Face ``LlamaConfig`` names), or the folder it comes from."""

    base: str | None = setting(
        None, "a local Hugging Face folder (config, safetensors, tokenizer) to start from instead of scratch"
    )
    vocab_size: int = setting(4096, "tokens of the byte-level BPE tokenizer that curation trains", ge=300)
    hidden_size: int = setting(128, "width", ge=8)
    intermediate_size: int = setting(384, "width of the feed-forward layers", ge=8)
    layers: int = setting(4, "transformer layers", ge=1)
    heads: int = setting(4, "attention heads", ge=1)
    kv_heads: int = setting(2, "key-value heads (grouped-query attention)", ge=1)
    context: int = setting(256, "longest sequence in tokens", ge=16)
    rope_theta: float = setting(10_000.0, "base of the rotary position embedding", gt=0)
    initializer_range: float = setting(0.02, "standard deviation of the initial weights", gt=0, le=1)
    tie_embeddings: bool = setting(True, "share the input and output embedding")


@dataclass
class Lora:
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int = setting(16, "rank of the update", ge=1)
    alpha: int = setting(32, "scaling numerator", ge=1)
    dropout: float = setting(0.0, "dropout before the adapter", ge=0, le=1)
    targets: list[str] = setting(
        ["*_proj"], "names of the linear layers that get an adapter; * stands for anything"
    )


@dataclass
class Optimisation:
    """What pre-training, fine-tuning and alignment have in common."""

    max_steps: int = setting(500, "optimiser steps", ge=1)
    global_batch_size: int = setting(32, "sequences (pairs, for preference losses) per optimiser step", ge=1)
    micro_batch_size: int = setting(32, "sequences per forward pass; divides the global batch", ge=1)
    lr: float = setting(1e-3, "peak learning rate", gt=0, le=1)
    min_lr_share: float = setting(0.1, "final learning rate as a share of the peak", ge=0, le=1)
    warmup_steps: int = setting(20, "steps of linear warm-up; cosine decay after", ge=0)
    weight_decay: float = setting(0.01, "decoupled weight decay (AdamW)", ge=0)
    beta2: float = setting(0.95, "AdamW's second moment decay", gt=0, le=1)
    grad_clip: float = setting(1.0, "largest gradient norm", gt=0)
    precision: str = setting("bf16", "bf16: autocast over fp32 weights; fp32: none", choices=("bf16", "fp32"))
    seed: int = setting(1234, "of initialisation, data order and dropout", ge=0)
    checkpoint_every: int = setting(100, "steps between checkpoints", ge=1, identity=False)
    validate_every: int = setting(200, "steps between looks at the validation loss", ge=1, identity=False)
    validation_batches: int = setting(8, "batches of a look at the validation loss", ge=1)


@dataclass
class Pretrain(Optimisation):
    """Pre-training from scratch on the documents (next-token loss, packed sequences)."""


@dataclass
class Train(Optimisation):
    """Supervised fine-tuning on the instruction pairs (loss on the answer tokens only)."""

    peft: str = setting("none", "none: all weights; lora: adapters only", choices=("none", "lora"))
    lora: Lora = field(default_factory=Lora)


@dataclass
class Align(Optimisation):
    """Direct preference optimisation (Rafailov et al. 2023) on the preference pairs."""

    beta: float = setting(0.1, "strength of the pull to the reference policy", gt=0)
    label_smoothing: float = setting(
        0.0, "share of pairs assumed to be labelled wrong way round", ge=0, le=0.5
    )
    sft_weight: float = setting(0.0, "weight of an added loss on the chosen answers", ge=0)
    peft: str = setting("none", "none: all weights; lora: adapters only", choices=("none", "lora"))
    lora: Lora = field(default_factory=Lora)
