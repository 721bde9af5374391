"""Every setting that a recipe can have: name, type, default, range and meaning.

One dataclass per section.  The controller loads recipes into these through OmegaConf's
structured configs (:mod:`pipeline.recipe`); a step gets the same dataclasses back from
the JSON it is handed (:func:`from_plain`).  This module imports nothing but the standard
library, because it is imported in the controller and in every toolchain.

The dividing line: a field bears identity (changing it makes the step run again) unless
it is declared with ``identity=False``, which is for what never changes a result: ports,
worker counts, time-outs, how often something is logged or saved.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    choices: tuple[str, ...] | None = None,
    identity: bool = True,
) -> Any:
    """Declare one setting: its default, its meaning and the values it accepts.

    ``ge``/``gt``/``le`` bound numbers (at least / more than / at most), ``choices`` lists
    the accepted words, and ``identity=False`` marks a setting that never changes results.
    """
    metadata = {"help": help, "ge": ge, "gt": gt, "le": le, "choices": choices, "identity": identity}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


# ---------------------------------------------------------------------------- curation


@dataclass
class Source:
    """One place that raw documents come from."""

    kind: str = setting("jsonl", "what it is", choices=("python-docs", "jsonl", "text"))
    path: str | None = setting(
        None, "jsonl: a file or folder of *.jsonl; text: a file or folder of *.txt and *.md"
    )
    packages: list[str] = setting(
        [], "python-docs: import packages to read; 'stdlib' is the standard library"
    )
    text_field: str = setting("text", "jsonl: the field that holds the text")
    title_field: str = setting("title", "jsonl: the field with the document's name, if any")
    max_documents: int = setting(0, "read at most this many documents (0: all)", ge=0)


@dataclass
class CurateFilters:
    """Heuristic filters of NeMo Curator, with their thresholds."""

    min_words: int = setting(5, "WordCountFilter: fewest words", ge=0)
    max_words: int = setting(100_000, "WordCountFilter: most words", ge=1)
    min_mean_word_length: float = setting(2.0, "MeanWordLengthFilter: shortest mean", ge=0)
    max_mean_word_length: float = setting(14.0, "MeanWordLengthFilter: longest mean", gt=0)
    max_symbol_to_word: float = setting(1.0, "SymbolsToWordsFilter: most '#' and '...' per word", gt=0)
    max_non_alpha_numeric: float = setting(
        0.60, "NonAlphaNumericFilter: largest share of other characters", gt=0, le=1
    )
    max_repeated_lines: float = setting(
        0.30, "RepeatedLinesFilter: largest share of repeated lines that is let through", ge=0, le=1
    )


@dataclass
class CurateDedup:
    """Near-duplicate removal: MinHash signatures, banded (Leskovec et al., ch. 3)."""

    ngram: int = setting(5, "length of a shingle, in words", ge=1)
    permutations: int = setting(128, "length of a MinHash signature", ge=16)
    bands: int = setting(16, "bands of the signature; permutations must divide by it", ge=1)
    threshold: float = setting(0.8, "Jaccard estimate from which two documents are duplicates", gt=0, le=1)


@dataclass
class Curate:
    """Raw documents to pre-training, instruction and preference data."""

    sources: list[Source] = field(
        default_factory=list, metadata={"help": "where raw documents come from", "identity": True}
    )
    instructions: str | None = setting(
        None, "a JSONL file of ready chat examples ({'messages': [...]}) to add to the instruction data"
    )
    preferences: str | None = setting(
        None, "a JSONL file of ready pairs ({'prompt', 'chosen', 'rejected'}) to add to the preference data"
    )
    filters: CurateFilters = field(default_factory=CurateFilters)
    dedup: CurateDedup = field(default_factory=CurateDedup)
    redact: list[str] = setting(
        ["email", "ipv4", "phone", "api_key"], "kinds of personal data that are replaced by a tag"
    )
    max_characters: int = setting(500, "a pre-training document is cut to this length (0: never)", ge=0)
    validation_share: float = setting(0.03, "share of documents held out for validation", ge=0, le=0.5)
    test_share: float = setting(0.07, "share of documents held out for the test", ge=0, le=0.5)
    max_pairs: int = setting(0, "at most this many training pairs of each data set (0: all)", ge=0)
    content_share: float = setting(
        0.25, "content pairs as a share of the style pairs, in training", ge=0, le=1
    )
    max_bad_share: float = setting(
        0.01, "stop when more than this share of the input records cannot be read", ge=0, le=1
    )
    workers: int = setting(0, "worker processes (0: one per core)", ge=0, identity=False)


# ------------------------------------------------------------------- model and training


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


# ------------------------------------------------------------ evaluation, gate, delivery


@dataclass
class Evaluate:
    """Base, fine-tuned and aligned model side by side on the held-out split."""

    max_documents: int = setting(1500, "held-out documents for perplexity", ge=1)
    max_pairs: int = setting(1000, "held-out instruction pairs, and preference pairs of each kind", ge=1)
    generations: int = setting(300, "greedy answers checked against the house style", ge=1)
    shown: int = setting(5, "answers printed in full", ge=0)
    max_new_tokens: int = setting(48, "longest generated answer, in tokens", ge=1)
    bootstrap: int = setting(2000, "resamples of a confidence interval", ge=100)
    batch_size: int = setting(64, "sequences per forward pass", ge=1, identity=False)


@dataclass
class Gate:
    """When the aligned model counts as worse than its parent; stops the chain before export."""

    max_answer_loss_rise: float = setting(
        0.07, "largest relative rise of the answer loss (end token excluded) over the parent", ge=0
    )
    max_content_accuracy_fall: float = setting(
        0.0, "largest fall of content accuracy beyond the paired 95% interval", ge=0, le=1
    )
    min_style_accuracy_rise: float = setting(
        0.0, "smallest rise of style preference accuracy over the parent", ge=-1, le=1
    )
    override_reason: str | None = setting(
        None, "go on although the gate is closed; the reason is recorded in the export's manifest"
    )


@dataclass
class Export:
    """One bundle, and the repository of the serving target."""

    target: str = setting("cpu-openvino", "what serves the model", choices=("cpu-openvino",))
    weights: str = setting("fp32", "weight precision of the served model", choices=("fp32", "int8"))
    model_name: str = setting("assistant", "the model's name on the server")
    parity_prompts: int = setting(64, "held-out prompts of the parity check", ge=50)
    parity_tokens: int = setting(24, "greedy tokens compared per prompt", ge=1)
    max_new_tokens: int = setting(64, "answer length when a request names none", ge=1)
    kv_cache_gb: int = setting(1, "memory of the server's key-value cache", ge=1)


@dataclass
class Deploy:
    """The Triton server: where it listens and how long it may take to answer."""

    host: str = setting("127.0.0.1", "address to listen on; loopback unless set", identity=False)
    http_port: int = setting(8000, "HTTP port", ge=1, le=65535, identity=False)
    grpc_port: int = setting(8001, "gRPC port", ge=1, le=65535, identity=False)
    metrics_port: int = setting(8002, "Prometheus port", ge=1, le=65535, identity=False)
    start_timeout_s: int = setting(120, "longest wait for the first answer", ge=1, identity=False)


@dataclass
class Site:
    """Where a recipe runs. Never bears identity."""

    name: str = setting("local", "the site's name", identity=False)
    threads: int = setting(
        0, "threads of a training or evaluation process (0: one per core)", ge=0, identity=False
    )
    min_free_gb: float = setting(
        2.0, "free disk that must be there before anything starts", ge=0, identity=False
    )
    lease_s: float = setting(
        60.0,
        "seconds without a sign of life after which a step's holder on another machine counts as dead",
        gt=0,
        identity=False,
    )
    grace_s: float = setting(
        20.0, "seconds that an interrupted step may take to write a checkpoint", ge=0, identity=False
    )


ALL_STAGES = ["curate", "pretrain", "train", "align", "evaluate", "export", "deploy"]


@dataclass
class Recipe:
    """A whole recipe: what to build."""

    description: str = setting("", "what the recipe builds", identity=False)
    stages: list[str] = setting(ALL_STAGES, "the stages of this recipe, in order")
    curate: Curate = field(default_factory=Curate)
    model: Model = field(default_factory=Model)
    pretrain: Pretrain = field(default_factory=Pretrain)
    train: Train = field(default_factory=Train)
    align: Align = field(default_factory=Align)
    evaluate: Evaluate = field(default_factory=Evaluate)
    gate: Gate = field(default_factory=Gate)
    export: Export = field(default_factory=Export)
    deploy: Deploy = field(default_factory=Deploy)
    site: Site = field(default_factory=Site)


def hints(section: type) -> dict[str, Any]:
    """The resolved type of each field of a section."""
    return typing.get_type_hints(section)


def is_section(annotation: Any) -> bool:
    """Whether a field's type is itself a section (a dataclass)."""
    return isinstance(annotation, type) and dataclasses.is_dataclass(annotation)


def item_type(annotation: Any) -> Any:
    """The element type of a ``list[...]`` annotation, else None."""
    if typing.get_origin(annotation) is list:
        return typing.get_args(annotation)[0]
    return None


def from_plain(section: type, values: dict[str, Any]) -> Any:
    """Rebuild a section from plain JSON values that :mod:`pipeline.recipe` validated.

    Raises ``TypeError`` for a key that the section does not have: the controller and the
    toolchain then run different versions of this file.
    """
    kinds = hints(section)
    built = {}
    for name, value in values.items():
        if name not in kinds:
            raise TypeError(f"{section.__name__} has no setting {name!r}")
        kind = kinds[name]
        element = item_type(kind)
        if is_section(kind):
            value = from_plain(kind, value)
        elif is_section(element):
            value = [from_plain(element, item) for item in value]
        elif kind is float or (isinstance(kind, types.UnionType) and float in typing.get_args(kind)):
            value = None if value is None else float(value)
        built[name] = value
    return section(**built)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted path to value; a list is one value."""
    if isinstance(value, dict):
        merged: dict[str, Any] = {}
        for key, inner in value.items():
            merged.update(flat(inner, f"{prefix}.{key}" if prefix else key))
        return merged
    return {prefix: value}


def identity_values(section: Any) -> dict[str, Any]:
    """The settings of a section that bear identity, as plain JSON values."""
    kept: dict[str, Any] = {}
    for declared in dataclasses.fields(section):
        if not declared.metadata.get("identity", True):
            continue
        kept[declared.name] = _plain(getattr(section, declared.name))
    return kept


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return identity_values(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value
