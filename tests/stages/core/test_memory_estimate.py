"""The estimate that recipes are refused by, held to the tensors of real training steps."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline.plan.memory import adapter_parameters, need, parameters
from pipeline.schema import Lora, Model, Train

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "layers": 3,
    "heads": 6,
    "kv_heads": 2,
    "vocab_size": 301,
}


def llama(model: Model) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.hidden_size,
            intermediate_size=model.intermediate_size,
            num_hidden_layers=model.layers,
            num_attention_heads=model.heads,
            num_key_value_heads=model.kv_heads,
            tie_word_embeddings=model.tie_embeddings,
        )
    )


def held(model: torch.nn.Module) -> tuple[int, int, int]:
    """Bytes of weights, gradients and AdamW's moments after a step."""
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained)
    model(input_ids=torch.arange(4, 20)[None]).logits.float().sum().backward()
    optimiser.step()
    moments = [t for state in optimiser.state.values() for t in state.values() if t.dim()]
    sizes = [[t.numel() * t.element_size() for t in group] for group in
             (list(model.parameters()), [p.grad for p in trained], moments)]  # fmt: skip
    return sum(sizes[0]), sum(sizes[1]), sum(sizes[2])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["bf16", "bf16-weights"])
def test_all_weights(tied: bool, precision: str) -> None:
    shape = Model(**SHAPE, tie_embeddings=tied)
    model = llama(shape).to(torch.bfloat16 if precision == "bf16-weights" else torch.float32)
    assert sum(p.numel() for p in model.parameters()) == parameters(shape)
    estimate = need(shape, Train(precision=precision), 1)
    assert held(model) == (estimate.weights, estimate.gradients, estimate.optimiser)


def test_adapters() -> None:
    from peft import LoraConfig, get_peft_model

    shape = Model(**SHAPE, tie_embeddings=False)
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(llama(shape), LoraConfig(r=5, target_modules=names, task_type="CAUSAL_LM"))
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert own == adapter_parameters(shape, 5)
    estimate = need(shape, Train(peft="lora", lora=Lora(rank=5)), 1)
    weights, gradients, moments = held(model)
    assert (weights - 4 * own, gradients, moments) == (
        estimate.weights,
        estimate.gradients,
        estimate.optimiser,
    )
