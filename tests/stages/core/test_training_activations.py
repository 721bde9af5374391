"""The planner's activations, held to what PyTorch keeps of real graphs, and its sum to the peak of a real step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.plan import shapes
from pipeline.plan.training import activations, memory
from pipeline.plan.training.layout import Layout, Work

CONFIG = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
BATCH, LENGTH = 2, 128


def shape(**changed: int) -> shapes.Shape:
    return shapes.from_config({"model_type": "llama", **CONFIG, **changed}, "a test")


def llama(precision: str, recompute: str = "none", **changed: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**CONFIG, **changed}, attn_implementation="sdpa"))
    if recompute == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train().to(torch.bfloat16 if precision == "bf16-weights" else torch.float32)


def kept(model: Any, precision: str) -> int:
    """Bytes that the layers' forward pass keeps, beside the model's own tensors."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    sizes: dict[int, int] = {}
    alive = []  # storages that are freed could be handed out again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        model(input_ids=torch.randint(0, 512, (BATCH, LENGTH)), use_cache=False)
    return sum(sizes.values())


def of_layers(precision: str, recompute: str, adapted: bool) -> int:
    """Bytes that four layers keep: of six, less those of two, so that what is outside of layers is not counted."""
    sizes = []
    for depth in (6, 2):
        model: Any = llama(precision, recompute, num_hidden_layers=depth)
        if adapted:
            from peft import LoraConfig, get_peft_model

            lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
            model = get_peft_model(
                model, lora, autocast_adapter_dtype=False
            )  # AutoModel's are as the weights
            model.enable_input_require_grads()
        sizes.append(kept(model.base_model.model.model if adapted else model.model, precision))
    return sizes[0] - sizes[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_what_is_kept_of_layers_is_counted_tensor_by_tensor(precision: str) -> None:
    work = Work("sft", length=LENGTH, precision=precision, states="automodel", kernels="eager")
    estimate = activations.activations(
        shape(num_hidden_layers=4), Layout(micro_batch=BATCH, global_batch=BATCH), work
    )
    copies = 0.0
    if precision == "bf16":  # autocast's copies of the weights, which are among the buffers
        copies = 2.0 * (shape(num_hidden_layers=4).active_matmul_weights - shape().head_parameters)
    assert estimate + copies == pytest.approx(of_layers(precision, "none", False), rel=0.001)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_recomputed_layers_keep_what_comes_in(precision: str) -> None:
    work = Work("sft", length=LENGTH, precision=precision, states="automodel", kernels="eager")
    four, none = (
        activations.activations(
            shape(num_hidden_layers=depth),
            Layout(micro_batch=BATCH, global_batch=BATCH, recompute="full"),
            work,
        )
        for depth in (5, 1)
    )
    assert four - none == of_layers(precision, "full", False)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
def test_adapters_keep_about_the_same(precision: str) -> None:
    work = Work(
        "sft", length=LENGTH, precision=precision, states="automodel", kernels="eager", peft="lora", rank=4
    )
    estimate = activations.activations(
        shape(num_hidden_layers=4), Layout(micro_batch=BATCH, global_batch=BATCH), work
    )
    copies = 0.0
    if precision == "bf16":
        copies = 2.0 * (shape(num_hidden_layers=4).active_matmul_weights - shape().head_parameters)
    assert estimate + copies == pytest.approx(of_layers(precision, "none", True), rel=0.1)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-weights"])
@pytest.mark.parametrize("vocabulary", [512, 8192])
def test_the_sum_is_the_peak_of_a_step(precision: str, vocabulary: int) -> None:
    """Of the second micro batch of a step, when gradients are there already."""
    model = llama(precision, vocab_size=vocabulary)
    optimiser = torch.optim.AdamW(model.parameters(), foreach=False)
    tokens = torch.randint(0, 512, (BATCH, LENGTH))

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = model(input_ids=tokens, use_cache=False).logits
        return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())

    tracker = MemTracker()
    tracker.track_external(model, optimiser)
    with tracker:
        loss().backward()
        optimiser.step()
        tracker.reset_mod_stats()
        loss().backward()
    peak = next(iter(tracker.get_tracker_snapshot("peak").values()))["Total"]
    work = Work("sft", length=LENGTH, precision=precision, states="automodel", kernels="eager")
    found = memory.need(
        shape(vocab_size=vocabulary), Layout(micro_batch=BATCH, global_batch=BATCH), work, on_gpu=False
    )
    assert found.bytes - found.item("fragmentation").value == pytest.approx(peak, rel=0.1)
