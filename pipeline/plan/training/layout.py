"""How a training step is spread over GPUs (:class:`Layout`), and what it computes (:class:`Work`).

The words are the field's: tensor parallelism splits every matrix, pipeline parallelism the layers into stages (each in
``virtual`` interleaved pieces: Narayanan et al. 2021, section 2.2), context parallelism the sequence, expert parallelism the
experts.  What they leave of the GPUs is data-parallel; sharding spreads the model's states over data and context
ranks (Rajbhandari et al. 2020, "ZeRO": stage 1 optimiser states, 2 gradients too, 3 weights too, which is FSDP).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from pipeline.errors import UserError
from pipeline.plan.shapes.shape import Shape
from pipeline.wording import counted

SHARDINGS = ("none", "zero1", "zero2", "zero3")
RECOMPUTES = ("none", "selective", "full")
PREFERENCE = ("dpo", "ipo", "rpo", "simpo", "orpo", "kto")
KINDS = ("pretrain", "sft", *PREFERENCE, "reward")
PEFTS = ("none", "lora", "dora", "qlora")
PRECISIONS = ("bf16", "bf16-weights", "fp8", "fp32")
STATES = ("megatron", "automodel", "zero")
REFERENCES = ("none", "precomputed", "kept", "live")


@dataclass(frozen=True)
class Work:
    """What a step computes.

    ``precision`` has the meaning of ``schema/training.py``, and ``fp8`` besides: matrix products in FP8 over bf16 weights.
    ``states`` is the convention of the bytes a parameter costs (``states.py``); ``kernels``: ``eager`` keeps what Hugging Face's
    modules keep for the backward pass, ``fused`` what Megatron's and Transformer Engine's do.  ``reference``, of a preference
    loss: ``precomputed`` log-probabilities, a frozen copy ``kept`` beside the model for validation, or one asked ``live`` in
    every step.  ``blocked_loss``: where there is one
    process, logits are made a block of positions at a time.  ``fill``: share of the positions
    that hold a token of the data, 1 where sequences are packed.
    """

    kind: str = "pretrain"
    length: int = 4096
    precision: str = "bf16"
    states: str = "megatron"
    kernels: str = "fused"
    peft: str = "none"
    rank: int = 16
    targets: tuple[str, ...] = ("*_proj",)
    reference: str = "none"
    blocked_loss: bool = False
    packing: bool = False
    fill: float = 1.0
    flash: bool = True

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained instead of all weights."""
        return self.peft != "none"

    @property
    def sequences(self) -> int:
        """Sequences that an example of the batch has: a pair has two; KTO adds a mismatched one."""
        return {"kto": 3, "reward": 2}.get(self.kind, 2 if self.kind in PREFERENCE else 1)

    def check(self) -> None:
        """Raise :class:`UserError` where a field has no meaning."""
        choices = (
            ("kind", self.kind, KINDS),
            ("precision", self.precision, PRECISIONS),
            ("states", self.states, STATES),
            ("kernels", self.kernels, ("eager", "fused")),
            ("peft", self.peft, PEFTS),
            ("reference", self.reference, REFERENCES),
        )
        for name, value, allowed in choices:
            if value not in allowed:
                raise UserError(f"{name} = {value!r}: choose one of {', '.join(allowed)}")
        if self.length < 1:
            raise UserError(f"a sequence of {self.length} tokens: give at least 1")
        if self.adapted and self.rank < 1:
            raise UserError(f"adapters of rank {self.rank}: give at least 1")
        if not 0 < self.fill <= 1:
            raise UserError(
                f"fill = {self.fill}: the share of positions that hold a token is above 0, up to 1"
            )


@dataclass(frozen=True)
class Layout:
    """How the work is spread over GPUs; data parallelism is what the other axes leave."""

    gpus: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    expert: int = 1
    sequence_parallel: bool = False
    sharding: str = "none"
    micro_batch: int = 1
    global_batch: int = 1
    recompute: str = "none"

    @property
    def shared(self) -> int:
        """GPUs that work on one micro batch together."""
        return self.tensor * self.pipeline * self.context

    @property
    def data(self) -> int:
        """Data-parallel ranks."""
        return max(1, self.gpus // self.shared)

    @property
    def ranks(self) -> int:
        """Ranks that states are sharded over: data-parallel times context-parallel."""
        return self.data * self.context

    @property
    def expert_ranks(self) -> int:
        """Ranks that hold the same experts, over which the experts' states are sharded."""
        return self.gpus // (self.pipeline * self.expert) if self.expert > 1 else self.ranks

    @property
    def micro_batches(self) -> int:
        """Micro batches that one rank runs in a step, one after the other."""
        return max(1, self.global_batch // (self.micro_batch * self.data))

    def words(self, on_gpus: bool = True) -> str:
        """The layout in one line, what is 1 or off left out; without GPUs it is spread over processes."""
        axes = (
            ("TP", self.tensor),
            ("PP", self.pipeline),
            ("VP", self.virtual),
            ("CP", self.context),
            ("EP", self.expert),
            ("DP", self.data),
        )
        said = [counted(self.gpus, *(("GPU",) if on_gpus else ("process", "processes")))]
        said += [f"{name} {size}" for name, size in axes if size > 1]
        if self.sharding != "none":
            said.append({"zero3": "FSDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2"}[self.sharding])
        said.append(f"micro batch {self.micro_batch} of {self.global_batch}")
        if self.recompute != "none":
            said.append(f"recompute {self.recompute}")
        return ", ".join(said)

    def fault(self, shape: Shape, work: Work) -> str | None:
        """Why the work cannot be spread so, in words; None where it can."""
        for name in (
            "gpus",
            "tensor",
            "pipeline",
            "virtual",
            "context",
            "expert",
            "micro_batch",
            "global_batch",
        ):
            if getattr(self, name) < 1:
                return f"{name.replace('_', ' ')} = {getattr(self, name)}: give at least 1"
        if self.sharding not in SHARDINGS:
            return f"sharding = {self.sharding!r}: choose one of {', '.join(SHARDINGS)}"
        if self.recompute not in RECOMPUTES:
            return f"recompute = {self.recompute!r}: choose one of {', '.join(RECOMPUTES)}"
        return self._axes(shape, work) or self._batches()

    def _axes(self, shape: Shape, work: Work) -> str | None:
        if self.gpus % self.shared:
            return (
                f"tensor {self.tensor} x pipeline {self.pipeline} x context {self.context} needs a multiple of {self.shared} "
                f"GPUs; there are {self.gpus}"
            )
        if shape.heads % self.tensor:
            return f"tensor {self.tensor} does not divide the {shape.heads} attention heads"
        if shape.width % self.tensor or shape.feed_forward % self.tensor:
            return f"tensor {self.tensor} does not divide the width {shape.width} and the feed-forward width {shape.feed_forward}"
        if self.pipeline * self.virtual > shape.depth + 2:  # the embeddings may count as a layer each
            return f"pipeline {self.pipeline} x virtual {self.virtual} needs as many layers; there are {shape.depth}"
        if self.virtual > 1 and self.pipeline == 1:
            return f"virtual stages ({self.virtual}) need pipeline above 1"
        if work.length % (2 * self.context) and self.context > 1:
            return (
                f"context {self.context} cuts a sequence into {2 * self.context} pieces (two a rank, so that causal work is even), "
                f"which do not divide {work.length} tokens"
            )
        if self.sequence_parallel and work.length // self.context % self.tensor:
            return f"sequence parallelism over tensor {self.tensor} does not divide {work.length // self.context} tokens"
        if self.expert > 1:
            count = experts(shape)
            if not count:
                return f"expert {self.expert}: {shape.name} has no experts"
            if count % self.expert:
                return f"expert {self.expert} does not divide the {count} experts"
            if self.gpus // self.pipeline % self.expert:
                return f"expert {self.expert} does not divide the {self.gpus // self.pipeline} GPUs of a pipeline stage"
        return None

    def _batches(self) -> str | None:
        if self.global_batch % (self.micro_batch * self.data):
            whole = self.global_batch % self.data == 0
            hint = (
                f"a divisor of {self.global_batch // self.data} as the micro batch"
                if whole
                else "a number of GPUs (or a global batch) such that one divides the other"
            )
            return (
                f"a global batch of {self.global_batch} is not {self.data} data-parallel ranks x a whole number of micro batches "
                f"of {self.micro_batch}; what can be: {hint}"
            )
        if self.virtual > 1 and self.micro_batches % self.pipeline:
            return (
                f"virtual stages need micro batches in multiples of pipeline {self.pipeline}; there are {self.micro_batches} "
                "(global batch / micro batch / data-parallel ranks)"
            )
        return None

    def check(self, shape: Shape, work: Work) -> None:
        """Raise :class:`UserError` where the layout or the work is impossible."""
        work.check()
        fault = self.fault(shape, work)
        if fault:
            raise UserError(f"layout of {shape.name}: {fault}")


@lru_cache(maxsize=256)
def experts(shape: Shape) -> int:
    """Experts of a layer that has them; 0 in a dense model."""
    routed = (
        linear.copies
        for layer in shape.layers
        for part in layer.parts
        for linear in part.linears
        if linear.active < linear.copies
    )
    return max(routed, default=0)
