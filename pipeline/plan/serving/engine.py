"""One replica of a model on the GPUs of one tensor-parallel group: what it holds, and how long one step takes.

A step of in-flight batching decodes one token for each running request and works on some prompt tokens as well.  A
roofline (Williams et al. 2009; for decoders Pope et al. 2022, section 3), each part on every GPU's share:

* **matrices of the layers**: the longer of ``2 x active parameters x tokens / (peak x compute)`` and
  ``bytes of the weights that are read / (bandwidth x memory)``: prompts are bound by the one, decoding of few
  requests by the other.  Of a mixture of experts ``T`` tokens read the share ``1 - (1 - active/all)^T``.
* **output matrix**: the same in bf16, only for tokens that are sampled from.
* **attention**: decoding reads each request's cache at the memory's speed; prompts compute, in bf16.
* **all-reduces**, two in a layer: ``2 (t-1)/t`` of the activations through NVLink (or PCIe), one way, at ``network`` of
  its speed, and a wait that does not shrink with the message.

The four constants of :class:`Efficiency` are fitted (``fit.py``).  The last part makes tensor parallelism ever less
efficient: what is computed and read falls by ``t``, what is waited for does not.

Memory: weights in their precision, embeddings and the output matrix in bf16 (as ModelOpt leaves them); 3 GB for CUDA,
the communicator and activations; of what is left 95% for the cache, as the benchmark's page sets it.  A request takes
room for its whole length when it starts (TensorRT-LLM's ``GUARANTEED_NO_EVICT``), and at most 4096 run at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.plan.serving.interfaces import Gpu, Shape

RESERVED = 3e9  # bytes: CUDA context, NCCL, activations and logits of a step
CACHE_SHARE = 0.95
MOST_REQUESTS = 4096
CHUNK = 8192  # prompt tokens in a step at most
LATENT = ("deepseek",)  # one latent for all heads: every GPU of the group keeps all of it
BF16 = 2.0


@dataclass(frozen=True)
class Precision:
    """Bytes of a layer's weight with its scales, and the unit of the GPU that multiplies it."""

    name: str
    bytes: float
    units: tuple[str, ...]


HALF = ("bf16", "fp16")  # older kinds have only the latter
# NVFP4: a scale byte for 16 values.  AWQ: an fp16 scale for 128.  AWQ and int8 are weight-only: multiplied in bf16
# (int8 in its own units where the table of GPUs has their peak).
PRECISIONS = {
    found.name: found
    for found in (
        Precision("bf16", 2.0, HALF),
        Precision("fp8", 1.0, ("fp8",)),
        Precision("int8", 1.0, ("int8", *HALF)),
        Precision("nvfp4", 0.5 + 1 / 16, ("nvfp4",)),
        Precision("int4-awq", 0.5 + 2 / 128, HALF),
    )
}
CACHE_BYTES = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "nvfp4": 0.5 + 1 / 16}


def computes(gpu: Gpu) -> list[str]:
    """The precisions that a GPU has units for."""
    return [name for name, one in PRECISIONS.items() if any(unit in gpu.tflops for unit in one.units)]


@dataclass(frozen=True)
class Efficiency:
    """Shares of the published peaks that are reached, and the wait in seconds a layer where GPUs share it."""

    compute: float
    memory: float
    network: float
    wait: float


PEAK = Efficiency(1.0, 1.0, 1.0, 0.0)


@dataclass(frozen=True)
class Step:
    """Seconds of a step by part."""

    layers: float
    head: float
    attention: float
    network: float

    @property
    def total(self) -> float:
        """Seconds of the step."""
        return self.layers + self.head + self.attention + self.network


@dataclass(frozen=True)
class Engine:
    """A model in a precision on ``tensor`` GPUs.

    Raises :class:`UserError` for a precision that the GPU has no units for, and a ``tensor`` that does not divide the heads.
    """

    shape: Shape
    gpu: Gpu
    precision: Precision
    cache: str
    tensor: int
    efficiency: Efficiency
    stages: int = 1  # groups of layers, each on GPUs of its own

    def __post_init__(self) -> None:
        if self.precision.name not in computes(self.gpu):
            raise UserError(
                f"{self.gpu.name} does not compute in {self.precision.name}; it does in {', '.join(computes(self.gpu))}"
            )
        if self.tensor < 1 or (self.shape.heads and self.shape.heads % self.tensor):
            raise UserError(
                f"--tensor-parallel {self.tensor}: must divide the {self.shape.heads} heads of {self.shape.name}"
            )

    # ------------------------------------------------------------------------------ memory

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights on all GPUs of the group together."""
        outside = self.shape.parameters - self.shape.layer_parameters
        return self.shape.layer_parameters * self.precision.bytes + outside * BF16

    @property
    def memory_bytes(self) -> float:
        """Bytes that one GPU has."""
        return self.gpu.memory_bytes

    @property
    def cache_room(self) -> float:
        """Bytes for the cache on one GPU; negative where the weights do not fit."""
        return CACHE_SHARE * (self.memory_bytes - RESERVED - self.weight_bytes / (self.tensor * self.stages))

    @property
    def cache_shards(self) -> int:
        """Over how many GPUs a request's cache is divided; with more GPUs than key-value heads they keep copies."""
        if self.shape.family.startswith(LATENT):
            return 1
        return min(self.tensor, self.shape.kv_heads) if self.shape.kv_heads else self.tensor

    def cache_bytes(self, tokens: int) -> float:
        """Bytes of a request's cache on one GPU."""
        return self.shape.cache_bytes(tokens, CACHE_BYTES[self.cache]) / (self.cache_shards * self.stages)

    def largest_batch(self, tokens: int) -> int:
        """Requests of so many tokens, input and output, that run at once; 0 where not even one fits."""
        return max(0, min(MOST_REQUESTS, int(self.cache_room // self.cache_bytes(tokens))))

    # -------------------------------------------------------------------------------- time

    @property
    def peak(self) -> float:
        """FLOP/s of one GPU in the precision of the layers."""
        return self._peak(self.precision.units)

    def step(self, decoding: float, prompt: float, context: int, length: int) -> Step:
        """Seconds of a step.

        ``decoding`` requests with ``context`` tokens in their cache on the average, and ``prompt`` tokens of prompts that
        are ``length`` long.  Averages over many steps need not be whole.
        """
        shape, gpu, share = self.shape, self.gpu, self.efficiency
        flops, half = self.peak * share.compute, self._peak(HALF) * share.compute
        memory = gpu.bandwidth_gb_s * 1e9 * share.memory
        tokens, sampled = decoding + prompt, decoding + prompt / length
        read = (1 - (1 - shape.active_layer_parameters / shape.layer_parameters) ** max(tokens, 1)) * (
            shape.layer_parameters * self.precision.bytes
        )
        layers = max(2 * shape.active_layer_parameters * tokens / flops, read / memory)
        head = max(2 * shape.head_parameters * sampled / half, shape.head_parameters * BF16 / memory)
        attention = decoding * self.cache_bytes(context) / memory
        attention += prompt * shape.attention_flops(length, True) / half / self.tensor
        return Step(layers / self.tensor, head / self.tensor, attention, self._network(tokens))

    def _peak(self, units: tuple[str, ...]) -> float:
        return 1e12 * next(self.gpu.tflops[unit] for unit in units if unit in self.gpu.tflops)

    def _network(self, tokens: float) -> float:
        if self.tensor == 1:
            return 0.0
        moved = 2 * tokens * self.shape.width * BF16 * 2 * (self.tensor - 1) / self.tensor
        speed = self.gpu.link(self.tensor) * self.efficiency.network
        return self.shape.depth * (moved / speed + self.efficiency.wait)

    def at_full_load(self, batch: float, input: int, output: int) -> Step:
        """The average step when ``batch`` requests always run: each token decoded brings input / output prompt tokens."""
        return self.step(batch, batch * input / output, input + output // 2, input)

    def throughput(self, input: int, output: int) -> float:
        """Output tokens a second of the whole group at the largest batch; 0 where no request fits."""
        batch = self.largest_batch(input + output)
        return batch / self.at_full_load(batch, input, output).total if batch else 0.0
