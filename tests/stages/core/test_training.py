"""Training on the real AutoModel: losses, examples, LoRA, preference training, accumulation."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import events, load_step, start, write_job
from safetensors.torch import load_file
from torch.nn import functional

from pipeline.engines.automodel import examples, packing, tokenise
from pipeline.engines.automodel.adapters import require_targets
from pipeline.engines.automodel.linear_loss import block_size, linear_cross_entropy
from pipeline.stages.models import merge_adapter
from pipeline.stages.step import InputError


@pytest.fixture
def tokenizer(curated: Path):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")


def test_linear_cross_entropy_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(1300, 16, requires_grad=True)  # more than two blocks
    weight = torch.randn(50, 16, requires_grad=True)
    labels = torch.randint(0, 50, (1300,))
    plain = functional.cross_entropy(hidden @ weight.t(), labels, reduction="sum")
    wanted = torch.autograd.grad(plain * 0.5, (hidden, weight))
    ours = linear_cross_entropy(hidden, weight, labels)
    found = torch.autograd.grad(ours * 0.5, (hidden, weight))
    torch.testing.assert_close(ours, plain)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_linear_cross_entropy_computes_no_gradient_that_nobody_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(700, 16, requires_grad=True)
    weight, labels = torch.randn(50, 16, requires_grad=True), torch.randint(0, 50, (700,))
    whole = linear_cross_entropy(hidden, weight, labels)
    wanted, other = torch.autograd.grad(whole, (hidden, weight))
    made: list[tuple[int, ...]] = []
    zeros, empty = torch.zeros_like, torch.empty_like
    monkeypatch.setattr(torch, "zeros_like", lambda t, **n: made.append(t.shape) or zeros(t, **n))
    monkeypatch.setattr(torch, "empty_like", lambda t, **n: made.append(t.shape) or empty(t, **n))
    frozen = linear_cross_entropy(hidden, weight.detach(), labels)  # as under adapters
    assert made == [hidden.shape]
    torch.testing.assert_close(torch.autograd.grad(frozen, hidden)[0], wanted)
    made.clear()
    alone = linear_cross_entropy(hidden.detach(), weight, labels)
    assert made == [weight.shape]
    torch.testing.assert_close(torch.autograd.grad(alone, weight)[0], other)
    made.clear()
    with torch.no_grad():
        assert torch.equal(linear_cross_entropy(hidden, weight, labels), whole)
    assert made == []


def test_a_gpus_blocks_are_as_large_as_memory_allows() -> None:
    assert block_size(4096, "cpu") == block_size(128_256, "cpu") == 512
    assert 2000 < block_size(128_256, "cuda") < 2200
    assert block_size(1 << 22, "cuda") == 512


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_by_products_is_the_fused_one(precision: torch.dtype) -> None:
    """Held to float64; in bf16 both round, and the products no worse than three times as much."""
    torch.manual_seed(0)
    sides = [torch.randn(5, heads, 37, 16).to(precision) for heads in (6, 3, 3)]
    upstream = torch.randn(5, 6, 37, 16, dtype=torch.float64)

    def outcome(attention: Callable[..., torch.Tensor], kind: torch.dtype) -> list[torch.Tensor]:
        own = [side.to(kind).detach().requires_grad_() for side in sides]
        output = attention(*own)
        return [output.double(), *torch.autograd.grad((output.double() * upstream).sum(), own)]

    def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    exact = outcome(fused, torch.float64)
    theirs, ours = outcome(fused, precision), outcome(packing.causal_attention, precision)
    for true, their, our in zip(exact, theirs, ours, strict=True):
        rounding = float((their.double() - true).norm())
        assert float((our.double() - true).norm()) <= 3 * rounding < 0.03 * float(true.norm())


def test_attention_under_autocast_is_in_its_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions leave queries and keys in fp32; the products must not be taken in it."""
    seen: list[torch.dtype] = []
    products = torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda m, *s, **n: seen.append(s[0].dtype) or products(m, *s, **n))
    query, key = (torch.randn(3, 4, 8, 16, requires_grad=True) for _ in range(2))
    value = torch.randn(3, 4, 8, 16, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, _ = packing.packed_attention(None, query, key, value, None)
    assert seen == [torch.bfloat16]
    wanted = functional.scaled_dot_product_attention(query, key, value.float(), is_causal=True)
    torch.testing.assert_close(output.transpose(1, 2).float(), wanted, rtol=0.05, atol=0.05)


def test_attention_that_is_more_than_causal_is_refused() -> None:
    sides = [torch.randn(1, 2, 8, 4) for _ in range(3)]
    packing.packed_attention(None, *sides, None, sliding_window=8, softcap=None)
    for more in ({"sliding_window": 7}, {"softcap": 50.0}, {"s_aux": torch.zeros(2)}):
        with pytest.raises(InputError, match="packing off"):
            packing.packed_attention(None, *sides, None, **more)


def test_loss_is_on_the_answer_and_its_end_only(tokenizer) -> None:
    record = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
    made, counts = tokenise.instruction_examples(tokenizer, [record], 256)
    labels = [label for label in made.labels.tolist() if label != examples.IGNORED]
    assert tokenizer.decode(labels) == "Because.<|im_end|>"
    whole = made.inputs.tolist() + made.labels.tolist()[-1:]
    template = tokenizer.apply_chat_template(record["messages"], tokenize=False)
    assert tokenizer.decode(whole) == template.removesuffix("\n")
    assert counts == {"examples": 1, "too_long": 0, "cut_prompts": 0}
    _, counts = tokenise.instruction_examples(tokenizer, [record], 5)
    assert counts == {"examples": 0, "too_long": 1, "cut_prompts": 0}


def test_documents_longer_than_the_context_lose_nothing(tokenizer) -> None:
    text = "Return the number of nodes in the graph. " * 20
    made, counts = tokenise.document_examples(tokenizer, [text], 32)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert made.labels.tolist() == [*ids, tokenizer.bos_token_id]
    assert counts["further_windows"] == len(made) - 1 > 1


def test_pretraining_learns_and_publishes_a_plain_folder(pretrained: Path, curated: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pretrained / "model", dtype=torch.float32)
    metrics = json.loads((pretrained.parent / "result.json").read_text())["metrics"]
    assert metrics["validation_loss"] < 0.97 * math.log(600)  # 600 tokens; 12 steps
    assert "rope_theta" in json.loads((pretrained / "model" / "config.json").read_text())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert json.loads((pretrained / "model" / "generation_config.json").read_text())["eos_token_id"] == [3, 0]


def test_accumulation_gives_the_gradient_of_the_global_batch(
    tmp_path: Path, curated: Path, pretrained: Path, run_stage: Callable[..., Path]
) -> None:
    settings = {"max_steps": 3, "global_batch_size": 8, "warmup_steps": 0, "precision": "fp32"}
    inputs = {"data": curated, "pretrain": pretrained}
    weights = []
    for micro in (8, 2):
        work = run_stage(
            "train", tmp_path / str(micro), inputs, train={**settings, "micro_batch_size": micro}
        )
        weights.append(load_file(work / "output" / "model" / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-4)


def test_targets_of_adapters_are_matched_as_automodel_does() -> None:
    from nemo_automodel.components._peft.module_matcher import ModuleMatcher

    from pipeline.lora_targets import HEAD, llama_layers, names

    given = [
        "*_proj",
        "q_proj",
        "self_attn.q_proj",
        "*.layers.1.*",
        "*layers.1.*",
        "*",
        "model.*",
        "*.mlp.*_proj",
    ]
    given += [
        "lm_head",
        "*head",
        "model.layers.0.mlp.up_proj",
        "*.layers.*.mlp.up_proj",
        "k_*",
        "*.self_attn.*",
        "proj",
    ]
    for target in given:
        matcher = ModuleMatcher(target_modules=[target])
        for path in [*llama_layers(12), HEAD]:
            prefix, _, name = path.rpartition(".")
            assert names(target, path) == bool(matcher.match(torch.nn.Linear(1, 1), name, prefix)), (
                target,
                path,
            )


def test_a_target_that_no_layer_of_the_built_model_has_is_refused() -> None:
    """For families whose layers are not known before the model is there."""

    class Adapted(torch.nn.Linear):
        lora_B, scale = None, 1.0

    model = torch.nn.Module()
    model.mixer = torch.nn.ModuleDict({"in_proj": Adapted(2, 2), "gate": torch.nn.Linear(2, 2)})
    require_targets(model, ["in_proj", "*_proj", "mixer.*"], "train")
    with pytest.raises(
        InputError, match=r"train.lora.targets: 'q_proj' names no .*; the model's are gate, in_proj"
    ):
        require_targets(model, ["*_proj", "q_proj"], "train")


def test_lora_trains_the_adapter_only_and_merges_as_peft_does(
    tmp_path: Path, curated: Path, pretrained: Path, run_stage: Callable[..., Path]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    inputs = {"data": curated, "pretrain": pretrained}
    work = run_stage("train", tmp_path / "train", inputs, train={"peft": "lora", "lr": 0.01})
    adapter = work / "output" / "adapter"
    assert json.loads((work / "output" / "model.json").read_text())["parent"] == "pretrain"
    assert any(
        float(t.abs().max()) > 0
        for name, t in load_file(adapter / "adapter_model.safetensors").items()
        if "lora_B" in name
    )
    merged = tmp_path / "merged"
    merge_adapter(pretrained / "model", adapter, merged)
    tokens = torch.arange(4, 40)[None]
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(tokens).logits
        base = AutoModelForCausalLM.from_pretrained(pretrained / "model", dtype=torch.float32)
        before = base(tokens).logits
        by_peft = PeftModel.from_pretrained(base, adapter)(tokens).logits
    torch.testing.assert_close(ours, by_peft, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-3)


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_preference_training_starts_at_the_reference_and_moves_away(
    tmp_path: Path, curated: Path, pretrained: Path, run_stage: Callable[..., Path], peft: str
) -> None:
    inputs = {"data": curated, "pretrain": pretrained}
    settings = {"peft": peft, "lr": 0.005, "max_steps": 20, "beta": 0.5, "precision": "fp32"}
    batch = {"global_batch_size": 16, "micro_batch_size": 16}
    work = run_stage("align", tmp_path / "align", inputs, align={**settings, **batch})
    logged = [
        json.loads(line)
        for line in (work / "state" / "checkpoints" / "training.jsonl").read_text().splitlines()
    ]
    assert logged[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    held_out = json.loads((work / "result.json").read_text())["metrics"]["held_out"]
    assert sum(line["loss"] for line in logged[-5:]) / 5 < math.log(2)
    assert held_out["kl"] > 1e-6
    assert {"accuracy", "style_accuracy", "content_accuracy", "style_margin", "style_kl"} <= set(held_out)


def test_training_without_examples_is_refused(tmp_path: Path, curated: Path, pretrained: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(curated, data)
    (data / "sft" / "train.jsonl").write_text("")
    process = start(write_job("train", tmp_path / "w", {"data": data, "pretrain": pretrained}))
    process.communicate(timeout=100)
    assert process.returncode == 2
    assert "no training example" in events(tmp_path / "w", "error")[0]["text"]
    assert load_step(tmp_path / "w" / "job.json").stage == "train"
