"""Memory of a training step of the engine ``automodel``, counted tensor by tensor.

    footprint(model, settings, processes)                          # on GPUs, every sequence as long as the context
    footprint(model, settings, 1, device="cpu", batch=Batch(8, 96, 768, 400))    # of a batch that is known

The engine runs Hugging Face's ``LlamaForCausalLM`` eagerly, so what autograd keeps can be read off
``transformers/models/llama/modeling_llama.py`` (5.18) operation by operation (:func:`layer`), what the loss keeps off
``engines/automodel/linear_loss.py``, ``recipe.py`` and ``preference_losses.py`` (:func:`logits_bytes`), and what FSDP2
gathers off ``torch/distributed/fsdp/_fully_shard`` (2.13, :func:`gathered_bytes`).  Nothing is fitted.
``tests/stages/core/test_memory_measured.py`` holds every item to real steps on a CPU, in one and two processes.

What is computed in what (``mode``): ``fp32``: everything in fp32.  ``autocast``: weights and the stream between layers in
fp32, matrices in bf16.  ``bf16``: everything but norms and the loss in bf16; so are ``bf16-weights``, and ``bf16``
under FSDP2, which gathers fp32 shards as bf16.

Activations are at their highest at one of four moments (:func:`moments`): while the loss is computed, in the
backward pass of the last norm, of the last layer's gated product, or of its attention.

``recompute: full`` is three things in AutoModel 0.7: with one process, and under FSDP2, whole layers are computed again from
their input; under DDP with several processes attention, feed-forward and both norms are checkpoints of their own, so
that four tensors of the model's width stay in every layer instead of one.  ``selective`` keeps every second matrix
product of a layer and what attention gives, and computes the rest again.

On a GPU attention is a flash kernel (queries, keys, values, its output and one normaliser a head); on a CPU in bf16
short sequences keep their scores (``engines/automodel/packing.py``).  Otherwise the GPU's kernels keep the same
tensors; this was not held to one.  Nor were tensor parallelism (what lies between matrices, weights and logits divided),
DoRA (two more tensors an adapted matrix) and QLoRA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pipeline.schema.training import Align, Lora, Model, Optimisation, Reward

BLOCK = 512  # positions of a loss's block on a CPU (engines/automodel/linear_loss.py)
BLOCK_BYTES = 1 << 30  # of its fp32 logits on a GPU
SCORES = 1 << 26  # attention scores that a CPU keeps at once (engines/automodel/packing.py)
NF4 = 0.55  # bytes a weight, with its scales (Dettmers et al. 2023, section 3)
REDUCED = 4  # bytes of a gradient while FSDP2 adds it up over processes
LOWERING = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Batch:
    """A micro batch: ``sequences`` of at most ``length`` tokens, ``tokens`` with padding, ``labels`` of them learned."""

    sequences: int
    length: int
    tokens: int
    labels: int


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process, each item at its highest."""

    weights: float
    adapters: float
    reference: float
    gradients: float
    optimiser: float
    activations: float
    logits: float
    buffers: float  # gathered by FSDP2 and being scattered, and bf16 copies of fp32 weights
    buckets: float  # DDP's
    unsharded: float  # whole gradients between the micro batches of a step (FSDP2)
    passing: float  # the highest moment of gradients, activations, logits, buffers and unsharded gradients together

    @property
    def standing(self) -> float:
        """What is there all the time."""
        return self.weights + self.adapters + self.reference + self.optimiser + self.buckets

    @property
    def peak(self) -> float:
        """The highest moment of a step."""
        return self.standing + self.passing


@dataclass(frozen=True)
class Linear:
    """A matrix of a layer, and whether an adapter is on it (``learned``: its input is kept for a gradient)."""

    name: str
    inner: int
    outer: int
    learned: bool
    rank: int = 0


@dataclass(frozen=True)
class Term:
    """A tensor that autograd keeps: its bytes a token, what keeps it, and which part of the layer it belongs to."""

    name: str
    bytes: float
    part: str  # norm1, attention, norm2, mlp


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


def footprint(
    model: Model, settings: Optimisation, processes: int, *, device: str = "cuda", batch: Batch | None = None
) -> Footprint:
    """What one of ``processes`` holds; ``batch`` is the fullest micro batch, else all sequences fill the context."""
    shape, peft = settings.parallel, getattr(settings, "peft", "none")
    sharded = shape.strategy == "fsdp2" and processes > 1
    ranks = processes // shape.tensor if sharded else 1
    held = 2 if settings.precision == "bf16-weights" else 4
    setting = setting_of(model, settings, processes, device, batch)
    base, own = parameters(model, isinstance(settings, Reward)), adapter_parameters(setting)
    embedded = model.vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    quantised = (base - embedded) * NF4 + embedded * held if peft == "qlora" else base * held
    weights = quantised / (shape.tensor * ranks)
    trained = (own if setting.adapted else base) / shape.tensor
    frozen = (
        isinstance(settings, Align)
        and not setting.adapted
        and (settings.exact_kl or settings.reference == "live")
    )
    live = (
        isinstance(settings, Align)
        and settings.reference == "live"
        and settings.loss not in ("simpo", "orpo")
    )
    rounds = settings.global_batch_size / (
        settings.micro_batch_size * max(1, processes // (shape.tensor * shape.context))
    )
    buffers = (
        gathered_bytes(setting, ranks, 1 + (frozen and live)) if sharded else copied_bytes(setting, live)
    )
    gradients = trained * held / ranks
    unsharded = REDUCED * trained if sharded and rounds > 1 else 0.0
    return Footprint(
        weights=weights,
        adapters=own * held / (shape.tensor * ranks),
        reference=weights if frozen else 0.0,
        gradients=gradients,
        optimiser=2 * trained * held / ranks,
        activations=max(moments(setting, live).values()),
        logits=logits_bytes(setting, live),
        buffers=buffers,
        buckets=trained * held if processes > 1 and not sharded else 0.0,
        unsharded=unsharded,
        passing=passing_bytes(setting, live, buffers, gradients, unsharded, accumulated=rounds > 1),
    )


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


# -- parameters ------------------------------------------------------------------------


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


# -- activations -----------------------------------------------------------------------


def layer(setting: Setting, *, first: bool = False) -> list[Term]:
    """What autograd keeps of a decoder layer, in the order in which it is computed.

    In the ``first`` layer under adapters nothing before them needs a gradient: the embeddings are frozen.
    """
    found, by_name = linears(setting.model, setting.lora, setting.adapted), {}
    for linear in found:
        by_name[linear.name] = linear
    width = setting.model.hidden_size / setting.narrow
    inner = setting.model.intermediate_size / setting.tensor
    wants = not (first and setting.adapted)
    return [
        *_norm(setting, "norm1", wants),
        *_inputs(setting, "attention", width, [by_name[n] for n in ("q_proj", "k_proj", "v_proj")]),
        *_attention(setting, by_name["o_proj"]),
        *_norm(setting, "norm2", True),
        *_inputs(setting, "mlp", width, [by_name[n] for n in ("gate_proj", "up_proj")]),
        # silu keeps its input; the product keeps both its sides; the last matrix keeps the product.
        Term("gate", setting.element * inner, "mlp"),
        Term("up", setting.element * inner, "mlp"),
        Term("activated gate", setting.element * inner, "mlp"),
        *([Term("gated product", setting.element * inner, "mlp")] if by_name["down_proj"].learned else []),
        *_adapters(setting, found),
    ]


def _norm(setting: Setting, part: str, wants: bool) -> list[Term]:
    """RMSNorm in fp32: ``weight * (x * rsqrt(mean(x ** 2) + eps))``."""
    width = setting.model.hidden_size / setting.narrow
    kept = []
    if wants:
        # pow and mul keep x: the stream itself where that is fp32, else an fp32 copy of it.
        kept += [Term("input in fp32", 4 * width, part), Term("rsqrt", 4, part)]
    if not setting.adapted:  # for the gradient of the norm's weight
        kept.append(Term("normalised", setting.stream * width, part))
    return kept


def _inputs(setting: Setting, part: str, width: float, rising: list[Linear]) -> list[Term]:
    """What matrices (an adapter's first one, where there is one) keep of their common input."""
    learned = [linear for linear in rising if linear.learned]
    if setting.mode == "autocast":  # which casts the input anew for every one of them
        return [Term(f"input of {linear.name} in bf16", 2 * width, part) for linear in learned]
    return [Term("normed input", setting.element * width, part)] if learned else []


def _attention(setting: Setting, output: Linear) -> list[Term]:
    """Queries and keys after rotary positions (which keep only cosines and sines), values, and what attention gives."""
    narrow, size = setting.tensor, setting.head_size
    queries, keys = setting.model.heads * size / narrow, setting.model.kv_heads * size / narrow
    element = 4 if setting.mode == "fp32" and setting.device == "cpu" else min(setting.element, 4)
    padded = (
        setting.batch.sequences * setting.batch.length / setting.batch.tokens if _padded(setting) else 1.0
    )
    kept = [
        Term("queries", padded * element * queries, "attention"),
        Term("keys", padded * element * keys, "attention"),
        Term("values", padded * element * keys, "attention"),
    ]
    if setting.scores:
        # Products taken one by one: softmax keeps what it gives; the output is made contiguous for the last matrix.
        kept.append(Term("attention's shares", padded * 2 * setting.scores / narrow, "attention"))
        if output.learned:
            kept.append(Term("attention's output", element * queries, "attention"))
        return kept
    kept.append(Term("normalisers", padded * 4 * setting.model.heads / narrow, "attention"))
    kept.append(Term("attention's output", padded * element * queries, "attention"))
    if _padded(setting) and output.learned:
        kept.append(Term("output without padding", element * queries, "attention"))
    return kept


def _padded(setting: Setting) -> bool:
    """Whether packed sequences are taken apart into a padded batch for attention: on a CPU."""
    return setting.packed and setting.device == "cpu"


def _adapters(setting: Setting, found: Iterable[Linear]) -> list[Term]:
    """What adapters keep besides their input: that of their second matrix, and dropout's mask."""
    kept = []
    for linear in found:
        part = "mlp" if linear.name in ("gate_proj", "up_proj", "down_proj") else "attention"
        if linear.rank:
            kept.append(Term(f"adapter of {linear.name}", setting.element * linear.rank, part))
            if setting.lora.dropout:
                kept.append(Term(f"dropout of {linear.name}", linear.outer / setting.tensor, part))
    return kept


def products(setting: Setting) -> list[tuple[str, float]]:
    """What ``selective`` keeps of a layer, bytes a token: every second matrix product, and what attention gives."""
    made: list[tuple[str, float]] = []
    for linear in linears(setting.model, setting.lora, setting.adapted):
        made.append((linear.name, setting.element * linear.outer / setting.tensor))
        if linear.rank:
            made.append((f"{linear.name}.A", setting.element * linear.rank))
            made.append((f"{linear.name}.B", setting.element * linear.outer / setting.tensor))
    return made[::2]


def total(terms: Iterable[Term], *parts: str) -> float:
    """Bytes a token of terms, or of those of some parts."""
    return sum(term.bytes for term in terms if not parts or term.part in parts)


def passing_bytes(
    setting: Setting, live: bool, buffers: float, gradients: float, unsharded: float, accumulated: bool
) -> float:
    """The highest moment of all that comes and goes.

    Logits are at their highest with what the forward pass kept, and gone in the backward pass, but for the
    gradient of tied embeddings.  With several micro batches a step, gradients are there from the second one on.
    """
    found = moments(setting, live)
    during = found.pop("loss") + logits_bytes(setting, live)
    scored = 4 * setting.model.vocab_size * setting.batch.labels  # the policy's log-softmax
    during = max(during, found.pop("reference", -scored) + scored)
    after = max(found.values()) + _pending(setting)
    both = max(during, after) + buffers
    return both + (unsharded or gradients) if accumulated else max(both, gradients + buffers)


def _pending(setting: Setting) -> float:
    """The output layer's gradient, which waits for that of the embeddings where they are one."""
    if setting.adapted or not setting.model.tie_embeddings:
        return 0.0
    return (
        (setting.element if setting.mode == "bf16" else 4)
        * setting.model.vocab_size
        * setting.model.hidden_size
    )


def moments(setting: Setting, live: bool = False) -> dict[str, float]:
    """Bytes of activations at each moment at which they can be at their highest."""
    model, batch, b = setting.model, setting.batch, setting.element
    width, tokens = model.hidden_size / setting.narrow, batch.tokens
    stream = setting.stream * width
    inner, queries = model.intermediate_size / setting.tensor, model.hidden_size / setting.tensor
    terms = layer(setting)
    before, recomputed = _kept(setting, terms)
    # The last norm keeps what any norm does; the output layer keeps its input where it learns.
    norm = total(_norm(setting, "norm1", True))
    own = 0 if setting.adapted else b
    if not setting.whole:
        last = batch.labels * width * 2 * b  # hidden states at the labels, and their gradient
    else:
        last = (tokens if setting.several and not _gathers_labels(setting) else batch.labels) * width * own
    # A working set of the backward pass of a norm: the gradient through x, and four tensors on the way through the mean.
    found = {"loss": tokens * (before + norm) + last, "last norm": tokens * (before + (4 + 5 * 4) * width)}
    if live:  # the reference's feed-forward, while everything of the policy is kept
        found["reference"] = tokens * (before + norm + 2 * stream + b * 3 * inner) + last
    product = total(t for t in terms if t.name == "gated product")
    gradient = stream  # of the stream, which the residual connection hands on
    found["gated product"] = tokens * (before + recomputed("mlp") - product + gradient + 3 * b * inner)
    output = total(
        t for t in terms if t.name == ("attention's output" if setting.scores else "output without padding")
    )
    scores = 2 * 2 * setting.scores / setting.tensor
    found["attention"] = tokens * (
        before + recomputed("attention") - output + gradient + 2 * b * queries + scores
    )
    return {name: bytes_ + _rotary(setting) for name, bytes_ in found.items()}


def _kept(setting: Setting, terms: list[Term]) -> tuple[float, Callable[[str], float]]:
    """Bytes a token that all layers keep, and what is there besides in the last layer's backward pass by its part."""
    depth, stream = setting.model.layers, setting.stream * setting.model.hidden_size / setting.narrow
    after = total(terms, "norm2", "mlp")  # gone when attention's backward pass is at its highest
    shared = (
        0.0 if setting.mode == "bf16" else stream
    )  # the input that a norm keeps is the one that a checkpoint does
    if setting.kept == "none":
        before = total(layer(setting, first=True)) + (depth - 1) * total(terms)
        return before, lambda part: 0.0 if part == "mlp" else -after
    if setting.kept == "layers":
        again = total(terms) - shared
        return depth * stream, lambda part: again if part == "mlp" else again - after
    if setting.kept == "parts":
        own = {part: total(terms, part) for part in ("mlp", "attention")}
        if setting.mode != "autocast":  # the matrices' input is the checkpoint's
            own = {part: bytes_ - stream for part, bytes_ in own.items()}
        # Where the embeddings are frozen, nothing in front of the first attention needs a gradient.
        inputs = 4 * depth - (1 if setting.adapted else 0)
        return inputs * stream, lambda part: own[part] - (0.0 if part == "mlp" else 2 * stream)
    cached = products(setting)
    given = sum(
        term.bytes
        for term in terms
        if term.name == "normalisers" or (term.name == "attention's output" and not setting.scores)
    ) + (setting.element * setting.model.hidden_size / setting.tensor if setting.scores else 0.0)
    # Taken from the cache in computing the layer again; the last matrix is not computed again.
    taken = given + sum(bytes_ for name, bytes_ in cached if not name.startswith("down_proj"))
    again = total(terms) - shared - taken
    before = depth * (stream + given + sum(bytes_ for _, bytes_ in cached))
    return before, lambda part: again if part == "mlp" else again - after


def _rotary(setting: Setting) -> float:
    """Cosines and sines, which all layers share."""
    positions = setting.batch.tokens if setting.packed else setting.batch.length
    return 2 * positions * setting.head_size * setting.stream


def _gathers_labels(setting: Setting) -> bool:
    """Whether logits are of labelled positions only: of a single row, Hugging Face's model takes them so."""
    return setting.packed or setting.batch.sequences == 1 or not setting.several


# -- logits and the loss ---------------------------------------------------------------


def logits_bytes(setting: Setting, live: bool = False) -> float:
    """Logits, the loss, and gradients of the output layer and of the embeddings on their way."""
    if setting.reward:
        return 0.0  # its head has one output
    model, b = setting.model, setting.element
    vocabulary, labels = model.vocab_size, setting.batch.labels
    weight = 0 if setting.adapted else vocabulary * model.hidden_size
    # At the end of the backward pass the embeddings' gradient joins that of the output layer, where they are one.
    ends = (4 if setting.mode == "autocast" else b) * weight * (2 if model.tie_embeddings else 1)
    if not setting.whole:
        return max(_blocked(setting, weight), ends if setting.mode == "bf16" else 2 * 4 * weight)
    everything = 0 if _gathers_labels(setting) else setting.batch.tokens
    forward = b * everything + b * labels  # all logits, and those of the labels
    loss = 4 * 2 * labels + (
        b * labels if b < 4 else 0
    )  # fp32 logits and their log-softmax, beside narrower logits
    backward = 3 * 4 * labels  # log-softmax, its gradient, and that of the logits
    spread = 2 * b * everything + b * labels  # the gradient of the labels' logits, put among zeros
    found = [forward, loss, backward, spread]
    if live:  # the reference's loss beside the policy's log-softmax
        found += [4 * labels + loss, 4 * labels + forward]
    through = b * (everything or labels) * vocabulary + weight * (
        b + (4 if setting.mode == "autocast" else 0)
    )
    return max(*(vocabulary * each for each in found), through, ends)


def _blocked(setting: Setting, weight: int) -> float:
    """The loss a block of positions at a time, ``engines/automodel/linear_loss.py``."""
    model, b, labels = setting.model, setting.element, setting.batch.labels
    size = BLOCK if setting.device == "cpu" else max(BLOCK, BLOCK_BYTES // (4 * model.vocab_size))
    # fp32 logits that become the error, and in bf16 both the product and the narrowed error besides.
    each = 4 if b == 4 else 6
    first = min(labels, size)
    second = min(labels - first, size)  # a block's tensors live until the next one's take their names
    return each * (first + second) * model.vocab_size + 4 * weight + (0 if second else b * weight)


# -- buffers ---------------------------------------------------------------------------


def copied_bytes(setting: Setting, live: bool = False) -> float:
    """bf16 copies of fp32 weights: those that autocast makes for a forward pass and autograd keeps."""
    if setting.mode != "autocast":
        return 0.0
    model, found = setting.model, linears(setting.model, setting.lora, setting.adapted)
    matrices = sum(linear.inner * linear.outer for linear in found)
    head, adapters = model.vocab_size * model.hidden_size, adapter_parameters(setting)
    if not setting.adapted:
        everything = model.layers * matrices  # kept until the forward pass ends, recomputed or not
        together = setting.kept == "none" or setting.several
        reference = head if live and setting.kept == "none" else 0  # for its logits, beside the policy's
        return 2 * (everything + head + reference if together else max(everything, head))
    # Of frozen weights only what a gradient goes through is kept; none does through the first layer's input.
    through = model.layers * matrices - sum(linear.inner * linear.outer for linear in found[:3])
    if setting.kept == "none":
        return 2 * (through + head + adapters)
    largest = max(linear.inner * linear.outer for linear in found)
    return 2 * max(
        adapters + (head if setting.several else largest), matrices + adapters / model.layers, head
    )


def gathered_bytes(setting: Setting, ranks: int, copies: int = 1) -> float:
    """What FSDP2 holds of whole weights, and of gradients while it scatters them.

    Its units are the layers, each trained embedding table that is not tied, and the root with the rest.  The
    root, the last layer and the output layer stay gathered after the forward pass.  While a unit is gathered,
    there are what was received for it and for the one before, besides the weights cut out of it.
    A unit's gradients are scattered from one fp32 buffer, of which gloo makes a copy, to the shard's.
    ``copies``: models that stay gathered so (a live reference is another).
    """
    model, b = setting.model, setting.element
    table: float = model.vocab_size * model.hidden_size
    separate = not setting.adapted and not model.tie_embeddings
    own = adapter_parameters(setting) / model.layers
    matrices = sum(linear.inner * linear.outer for linear in linears(model)) + 2 * model.hidden_size
    unit = (matrices + own) / setting.tensor
    root = (
        model.hidden_size + (0 if separate else table * (1 if model.tie_embeddings else 2)) / setting.tensor
    )
    table = table / setting.tensor if separate else 0.0
    first = table or unit
    gathering = [root + first + (root + first), root + unit + 2 * unit, root + unit + table + (unit + table)]
    gathering.append(root + unit + (table + unit) if table else 0)
    staging = (2 if setting.device == "cpu" else 1) + 1 / ranks
    learned = own / setting.tensor if setting.adapted else unit
    scattering = [
        b * (root + unit) + REDUCED * staging * table,
        b * (root + unit) + REDUCED * staging * learned,
    ]
    if not setting.adapted:
        scattering.append(REDUCED * staging * root)
    return max(b * max(gathering), *scattering) + (copies - 1) * b * (root + unit + table)
