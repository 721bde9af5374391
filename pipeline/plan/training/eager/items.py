"""The items of a training step's memory in one process."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.plan.training.eager.buffers import copied_bytes, gathered_bytes
from pipeline.plan.training.eager.loss import logits_bytes
from pipeline.plan.training.eager.moments import moments, passing_bytes
from pipeline.plan.training.eager.setting import Batch, adapter_parameters, parameters, setting_of
from pipeline.schema.training import Align, Model, Optimisation, Reward

WITHOUT_REFERENCE = ("simpo", "orpo")  # losses
NF4 = 0.55  # bytes a weight, with its scales (Dettmers et al. 2023, section 3)


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
    passing: float  # the highest moment of gradients, activations, logits and buffers together

    @property
    def standing(self) -> float:
        """What is there all the time."""
        return self.weights + self.adapters + self.reference + self.optimiser + self.buckets

    @property
    def peak(self) -> float:
        """The highest moment of a step."""
        return self.standing + self.passing


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
    live = copied = False  # the reference, and whether it is a frozen copy
    if isinstance(settings, Align):
        live = settings.reference == "live" and settings.loss not in WITHOUT_REFERENCE
        copied = not setting.adapted and (live or settings.exact_kl)
    data = max(1, processes // (shape.tensor * shape.context))
    rounds = settings.global_batch_size / (settings.micro_batch_size * data)
    if sharded:
        buffers = gathered_bytes(setting, ranks, models=1 + (copied and live))
    else:
        buffers = copied_bytes(setting, live)
    gradients = trained * held / ranks
    return Footprint(
        weights=weights,
        adapters=own * held / (shape.tensor * ranks),
        reference=weights if copied else 0.0,
        gradients=gradients,
        optimiser=2 * trained * held / ranks,
        activations=max(moments(setting, live).values()),
        logits=logits_bytes(setting, live),
        buffers=buffers,
        buckets=trained * held if processes > 1 and not sharded else 0.0,
        passing=passing_bytes(setting, live, buffers, gradients, accumulated=rounds > 1),
    )
