"""The settings of the model, and of pre-training, fine-tuning and alignment."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.schema.declare import setting

# Each preference loss with the settings that are its own (held to preference_losses.py by a test).
LOSS_SETTINGS: dict[str, tuple[str, ...]] = {
    "dpo": ("label_smoothing", "average"),
    "ipo": ("average",),
    "rpo_squared": ("eta", "average"),
    "rpo_forward_kl": ("eta", "average"),
    "rpo_backward_kl": ("eta", "average"),
    "simpo": ("gamma",),
    "orpo": (),
    "kto": ("desirable_weight", "undesirable_weight"),
}
PREFERENCE_LOSSES = tuple(LOSS_SETTINGS)
PEFT_KINDS = ("none", "lora", "dora", "qlora")
PEFT = "none: all weights; lora: adapters only; dora: with a learned magnitude; qlora: over 4-bit weights"
LENGTHS = ("drop", "cut-prompt", "error")
TOO_LONG = "what becomes of an example longer than the context: left out, its prompt cut in front, or a stop"


@dataclass
class Launch:
    """What a recipe was made for, and how many processes a training step runs as. Never bears identity."""

    gpus: int = setting(
        0, "GPUs of a machine that the recipe was made for (0: none needed)", ge=0, identity=False
    )
    gpu_memory_gb: int = setting(0, "memory of each of them, in GB", ge=0, identity=False)
    gpu: str | None = setting(
        None, "their kind (configs/gpus.yaml), for plans of time and money", identity=False
    )
    nodes: int = setting(
        1, "machines of a training step; more than one need SITE=slurm", ge=1, identity=False
    )
    processes: int = setting(
        0, "processes of a training step on a machine (0: one for each GPU, or one)", ge=0, identity=False
    )


@dataclass
class Model:
    """The model's shape (Hugging Face ``LlamaConfig`` names), or the folder it comes from."""

    base: str | None = setting(
        None,
        "a Hugging Face folder (config, safetensors, tokenizer) or hub id to start from instead of scratch",
    )
    revision: str = setting("main", "branch, tag or commit of a hub id", identity=False)
    chat_template: str | None = setting(
        None,
        "how conversations are written where the base has no template: a file, or a name of configs/chat_templates",
        identity=False,
    )
    template_date: str | None = setting(
        None, "the day (YYYY-MM-DD) that stands where the base's chat template reads today's date"
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


# The settings of Model that a base decides.
SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "layers", "heads", "kv_heads", "rope_theta", "tie_embeddings",
    "initializer_range",
)  # fmt: skip


@dataclass
class Lora:
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int = setting(16, "rank of the update", ge=1)
    alpha: int = setting(32, "scaling numerator", ge=1)
    lr: float | None = setting(
        None, "peak learning rate where adapters are trained; null: that of all weights", gt=0
    )
    dropout: float = setting(0.0, "dropout before the adapter", ge=0, le=1)
    targets: list[str] = setting(
        ["*_proj"], "names of the linear layers that get an adapter; * stands for anything"
    )


@dataclass
class Parallel:
    """How the work is spread over processes; never what is trained, but for rounding.

    What ``tensor`` and ``context`` do not use of ``launch.processes`` is data-parallel.
    """

    strategy: str = setting(
        "ddp",
        "ddp: every process holds the whole model; fsdp2: weights, gradients and optimiser states are sharded",
        choices=("ddp", "fsdp2"),
        identity=False,
    )
    tensor: int = setting(1, "processes that share every layer (needs fsdp2)", ge=1, identity=False)
    context: int = setting(1, "processes that share every sequence (needs fsdp2)", ge=1, identity=False)
    sequence: bool = setting(
        False, "shard norms and dropout along the sequence too (with tensor > 1)", identity=False
    )
    recompute: str = setting(
        "none",
        "activations computed again in the backward pass instead of kept",
        choices=("none", "selective", "full"),
        identity=False,
    )


@dataclass
class Nemo:
    """What the engines nemo and aligner need besides: NeMo's recipe, and the GPUs it is built for."""

    recipe: str | None = setting(
        None, "nemo-toolkit's recipe to start from, e.g. llama31_8b; none: its defaults, in the model's shape"
    )
    nodes: int = setting(1, "machines", ge=1, identity=False)
    gpus: int = setting(8, "GPUs of a machine", ge=1, identity=False)
    tensor: int = setting(1, "tensor parallel size", ge=1, identity=False)
    pipeline: int = setting(1, "pipeline parallel size", ge=1, identity=False)
    context: int = setting(1, "context parallel size", ge=1, identity=False)
    sequence_parallel: bool = setting(False, "cut activations along the sequence too", identity=False)


@dataclass
class Optimisation:
    """What pre-training, fine-tuning and alignment have in common."""

    max_steps: int = setting(500, "optimiser steps", ge=1)
    global_batch_size: int = setting(32, "sequences (pairs, for preference losses) per optimiser step", ge=1)
    micro_batch_size: int = setting(32, "sequences per forward pass; divides the global batch", ge=1)
    lr: float = setting(1e-3, "peak learning rate", gt=0, le=1)
    schedule: str = setting(
        "cosine",
        "decay of the learning rate after warm-up; wsd: constant, then linear over the last tenth",
        choices=("cosine", "linear", "constant", "inverse-square-root", "wsd"),
    )
    min_lr_share: float = setting(0.1, "final learning rate as a share of the peak", ge=0, le=1)
    warmup_steps: int = setting(20, "steps of linear warm-up", ge=0)
    weight_decay: float = setting(0.01, "decoupled weight decay (AdamW)", ge=0)
    beta2: float = setting(0.95, "AdamW's second moment decay", gt=0, le=1)
    grad_clip: float = setting(1.0, "largest gradient norm", gt=0)
    precision: str = setting(
        "auto",
        "bf16: autocast over fp32 weights; bf16-weights: weights, too, are held in bf16; fp32: no bf16 at all; "
        "auto: bf16 on GPUs and where a measurement finds the processor quicker in it, else fp32",
        choices=("auto", "bf16", "bf16-weights", "fp32"),
    )
    packing: bool = setting(
        False,
        "lay the sequences of a micro batch end to end instead of padding them; each attends to itself only",
        identity=False,
    )
    parallel: Parallel = field(default_factory=Parallel)
    seed: int = setting(1234, "of initialisation, data order and dropout", ge=0)
    checkpoint_every: int = setting(100, "steps between checkpoints", ge=1, identity=False)
    validate_every: int = setting(200, "steps between looks at the validation loss", ge=1, identity=False)
    validation_batches: int = setting(8, "global batches of a look at the validation loss", ge=1)
    keep_checkpoints: int = setting(
        2, "checkpoints kept of a running step, the best besides", ge=1, identity=False
    )
    async_checkpoint: bool = setting(
        False, "write checkpoints beside training instead of in between (CUDA)", identity=False
    )
    best_every: int = setting(
        0,
        "publish the weights of the lowest validation loss, looked at (and kept) every so many steps instead of "
        "validate_every and checkpoint_every; 0: the last",
        ge=0,
    )
    save_precision: str = setting(
        "fp32", "precision of the weights that are published", choices=("fp32", "bf16")
    )


@dataclass
class Pretrain(Optimisation):
    """Pre-training from scratch on the documents (next-token loss, one document a sequence)."""

    engine: str = setting(
        "automodel", "what trains; nemo: nemo-toolkit, on GPUs", choices=("automodel", "nemo")
    )
    nemo: Nemo = field(default_factory=Nemo)


@dataclass
class Train(Optimisation):
    """Supervised fine-tuning on the instruction pairs (loss on the answer tokens only)."""

    engine: str = setting(
        "automodel", "what trains; nemo: nemo-toolkit, on GPUs", choices=("automodel", "nemo")
    )
    nemo: Nemo = field(default_factory=Nemo)
    attributes: list[str] = setting(
        [],
        "attributes of the records that are written into their prompts (SteerLM; pipeline/attributes.py); "
        "evaluate.attributes says which values are asked for afterwards",
    )
    answers: str = setting("last", "answers of a conversation that are learned", choices=("last", "all"))
    too_long: str = setting("drop", TOO_LONG, choices=LENGTHS)
    peft: str = setting("none", PEFT, choices=PEFT_KINDS)
    lora: Lora = field(default_factory=Lora)


@dataclass
class Reward(Optimisation):
    """A Bradley-Terry reward model on the preference pairs (Ouyang et al. 2022, equation 1)."""

    margin: float = setting(
        0.0,
        "score gap that is asked of a pair, as a multiple of the gap of its given scores (Touvron et al. 2023, "
        "equation 2); above 0, every pair needs score_chosen and score_rejected",
        ge=0,
    )
    too_long: str = setting("drop", TOO_LONG, choices=LENGTHS)
    peft: str = setting(
        "none",
        "none: all weights; lora: adapters, merged into what is published",
        choices=("none", "lora"),
    )
    lora: Lora = field(default_factory=Lora)


@dataclass
class Sample:
    """Answers of the model so far to its own prompts, scored, and made into data (best of n)."""

    prompts: str = setting(
        "instructions", "curated data whose prompts are answered", choices=("instructions", "preferences")
    )
    max_prompts: int = setting(1000, "training prompts that are answered", ge=1)
    max_held_out: int = setting(100, "prompts of the validation and of the test split, each", ge=1)
    answers: int = setting(8, "answers drawn for a prompt (n)", ge=2)
    temperature: float = setting(1.0, "what the logits are divided by", gt=0)
    top_p: float = setting(
        1.0,
        "share of the probability, likeliest tokens first, that is drawn from (Holtzman et al. 2020)",
        gt=0,
        le=1,
    )
    max_new_tokens: int = setting(
        48, "longest answer in tokens; one that has not ended by then is left out", ge=1
    )
    seed: int = setting(1234, "of the draws; each prompt and answer has its own", ge=0)
    scorer: str = setting(
        "reward",
        "who scores the answers; reward: the stage's model; house-style: minus the rules that an answer breaks",
        choices=("reward", "house-style"),
    )
    policy: str = setting(
        "best-worst",
        "which answers of a prompt make a pair",
        choices=("best-worst", "best-random", "all-adjacent"),
    )
    pairs_per_prompt: int = setting(1, "pairs of a prompt at most (0: all)", ge=0)
    min_margin: float = setting(
        0.0, "smallest difference of the scores of a pair, in the scorer's unit", ge=0
    )
    shard_prompts: int = setting(64, "prompts between two points to go on from", ge=1, identity=False)
    batch_size: int = setting(64, "sequences per forward pass", ge=1, identity=False)


@dataclass
class Align(Optimisation):
    """Preference optimisation on the preference pairs; the losses are in ``engines/automodel/preference_losses.py``."""

    engine: str = setting(
        "automodel", "what aligns; aligner: NeMo-Aligner, in its container", choices=("automodel", "aligner")
    )
    nemo: Nemo = field(default_factory=Nemo)
    pairs: str = setting(
        "curate",
        "where the pairs are from; sample: from the model's own answers, made by the stage of that name",
        choices=("curate", "sample"),
    )
    loss: str = setting("dpo", "the preference loss", choices=PREFERENCE_LOSSES)
    beta: float = setting(
        0.1,
        "strength of the pull to the reference policy; simpo: scale of the reward (2 to 2.5 in its paper); "
        "orpo: weight of the odds ratio; ipo: the target margin is 1 / (2 beta)",
        gt=0,
    )
    label_smoothing: float = setting(
        0.0, "dpo: share of pairs assumed to be labelled wrong way round (cDPO)", ge=0, le=0.5
    )
    average: bool | None = setting(
        None,
        "log-ratios divided by the answer's tokens; unset: as the loss's authors do (ipo does, dpo and rpo not)",
    )
    gamma: float = setting(0.5, "simpo: target margin, in units of the reward", ge=0)
    eta: float = setting(1.0, "rpo: scale of the ground-truth rewards", gt=0)
    desirable_weight: float = setting(1.0, "kto: weight of the chosen answers", gt=0)
    undesirable_weight: float = setting(1.0, "kto: weight of the rejected answers", gt=0)
    sft_weight: float = setting(0.0, "weight of an added loss on the chosen answers", ge=0)
    reference: str = setting(
        "precomputed",
        "log-probabilities of the reference: once, before the first step, or live in every one",
        choices=("precomputed", "live"),
        identity=False,
    )
    exact_kl: bool = setting(
        True,
        "keep a frozen copy of the model to measure the KL to it (with adapters none is needed)",
        identity=False,
    )
    too_long: str = setting("drop", TOO_LONG, choices=LENGTHS)
    peft: str = setting("none", PEFT, choices=PEFT_KINDS)
    lora: Lora = field(default_factory=Lora)
