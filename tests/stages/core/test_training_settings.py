"""Each setting of training and alignment, on the real engine, in this process one after the other."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import events, load_step, write_job
from safetensors.torch import load_file, save_file

from pipeline import schema
from pipeline.schema.training import PREFERENCE_LOSSES
from pipeline.stages import align, train
from pipeline.stages.models import merge_adapter

SMALL = {
    "max_steps": 4,
    "global_batch_size": 8,
    "micro_batch_size": 4,
    "warmup_steps": 1,
    "precision": "fp32",
}
Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path, curated: Path, pretrained: Path) -> Run:
    """Run train or align here and return its work folder."""

    def made(module: Any, data: Path = curated, **settings: Any) -> Path:
        name = module.__name__.rsplit(".", 1)[-1]
        job = write_job(
            name, tmp_path / name, {"data": data, "pretrain": pretrained}, **{name: {**SMALL, **settings}}
        )
        module.run(load_step(job))
        return tmp_path / name

    return made


def metrics(work: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((work / "result.json").read_text())["metrics"]
    return found


def logged(work: Path) -> list[dict[str, Any]]:
    log = (work / "state" / "checkpoints" / "training.jsonl").read_text().splitlines()
    return [json.loads(line) for line in log]


@pytest.mark.parametrize("loss", PREFERENCE_LOSSES)
def test_every_loss_trains_from_where_it_must_start(
    run: Run, tmp_path: Path, curated: Path, loss: str
) -> None:
    data = scored(curated, tmp_path / "data") if loss.startswith("rpo") else curated
    beta = {"simpo": 2.0, "ipo": 0.2}.get(loss, 0.1)
    work = run(align, data, loss=loss, beta=beta, lr=5e-3, max_steps=12)
    rows = logged(work)
    # What the loss is while policy and reference are the same: see the formulas.
    start = {
        "dpo": math.log(2),
        "ipo": (1 / (2 * beta)) ** 2,
        "kto": 0.5,
        "rpo_squared": 1.0,
        "rpo_forward_kl": kl(0.0, 1.0),
        "rpo_backward_kl": kl(1.0, 0.0),
    }
    if loss in start:
        assert rows[0]["loss"] == pytest.approx(start[loss], rel=1e-3)
        assert (work / "output" / "reference.safetensors").exists()
    else:
        assert not (work / "output" / "reference.safetensors").exists()
    assert sum(row["loss"] for row in rows[-4:]) < sum(row["loss"] for row in rows[:4])
    held_out = metrics(work)["held_out"]
    assert held_out["kl"] > 0
    assert held_out["chosen_tokens"] > 1
    assert {"margin", "chosen_reward", "rejected_reward", "reward_accuracy", "style_accuracy"} <= set(
        held_out
    )


def kl(first: float, second: float) -> float:
    p, q = 1 / (1 + math.exp(-first)), 1 / (1 + math.exp(-second))
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def scored(curated: Path, data: Path) -> Path:
    """The data with scores one apart for every pair."""
    (data / "preference").mkdir(parents=True)
    (data / "tokenizer").symlink_to(curated / "tokenizer")
    for file in (curated / "preference").iterdir():
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        lines = [json.dumps({**row, "score_chosen": 3.0, "score_rejected": 2.0}) for row in rows]
        (data / "preference" / file.name).write_text("\n".join(lines) + "\n")
    return data


def test_the_reference_live_is_the_reference_kept(run: Run) -> None:
    rows = [logged(run(align, reference=kind, lr=5e-3)) for kind in ("precomputed", "live")]
    for kept, live in zip(*rows, strict=True):
        assert live["loss"] == pytest.approx(kept["loss"], rel=1e-5)


def test_another_number_of_processes_does_not_go_on(run: Run, tmp_path: Path) -> None:
    from pipeline.stages.step import InputError

    work = run(train)
    (work / "state" / "processes.json").write_text('{"processes": 2, "nodes": 1}')
    with pytest.raises(InputError, match=r"trained as 2 processes.*launch\.processes=2 launch\.nodes=1"):
        run(train)


def test_adapters_have_a_rate_of_their_own(run: Run) -> None:
    rows = logged(run(train, peft="lora", lr=1e-5, lora=schema.Lora(lr=1e-3), schedule="constant"))
    assert rows[-1]["lr"] == pytest.approx(1e-3)


def test_pairs_without_scores_cannot_be_trained_on_with_rpo(run: Run) -> None:
    from pipeline.stages.step import InputError

    with pytest.raises(InputError, match="pair 1 has no score_chosen"):
        run(align, loss="rpo_squared")


def test_dora_trains_and_merges_as_peft_does(run: Run, tmp_path: Path, pretrained: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    work = run(train, peft="dora", lr=2e-2)
    adapter = work / "output" / "adapter"
    weights = load_file(adapter / "adapter_model.safetensors")
    assert any("lora_magnitude_vector" in name for name in weights)
    merge_adapter(pretrained / "model", adapter, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(pretrained / "model", dtype=torch.float32)
    tokens = torch.arange(4, 40)[None]
    with torch.no_grad():
        before = base(tokens).logits
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(tokens).logits
        theirs = PeftModel.from_pretrained(base, adapter)(tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, before, atol=1e-3)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, curated: Path, run_stage: Callable[..., Path]) -> Path:
    """A model with as many weights as have something to round."""
    shape = {"hidden_size": 128, "intermediate_size": 128}
    return run_stage("pretrain", tmp_path_factory.mktemp("wide"), {"data": curated}, model=shape) / "output"


def rounded(model: Path, target: Path) -> Path:
    """A copy of a model's folder with the weights of its linear layers rounded to NF4 and back."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    shutil.copytree(model, target)
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if "_proj" in name:
            packed = quantize_4bit(weight.to(torch.bfloat16), compress_statistics=True, quant_type="nf4")
            weights[name] = dequantize_4bit(*packed).float()
    (target / "model.safetensors").unlink()
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("stage", [train, align])
def test_qlora_is_lora_over_weights_rounded_to_four_bits(
    tmp_path: Path, curated: Path, wide: Path, stage: Any
) -> None:
    name = stage.__name__.rsplit(".", 1)[-1]
    other = tmp_path / "rounded"
    other.mkdir()
    rounded(wide / "model", other / "model")
    (other / "model.json").write_bytes((wide / "model.json").read_bytes())
    rows = {}
    for kind, model in (("qlora", wide), ("lora", other), ("plain lora", wide)):
        settings = {**SMALL, "precision": "bf16", "lr": 2e-3, "peft": kind.split()[-1]}
        job = write_job(name, tmp_path / kind, {"data": curated, "pretrain": model}, **{name: settings})
        stage.run(load_step(job))
        rows[kind] = logged(tmp_path / kind)
    ours, theirs, plain = (
        torch.tensor([[row["loss"], row["grad_norm"]] for row in rows[kind]])
        for kind in ("qlora", "lora", "plain lora")
    )
    assert (ours - theirs).abs().max() < 0.03 * theirs.abs().max()
    # It is the rounding that is seen, and not only its absence.
    assert (ours - theirs).norm() < (ours - plain).norm() / 2
    adapter = load_file(tmp_path / "qlora" / "output" / "adapter" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert any(tensor.abs().max() > 0 for key, tensor in adapter.items() if ".lora_B." in key)


def test_preferences_with_dora_start_at_the_reference(run: Run) -> None:
    rows = logged(run(align, peft="dora", lr=5e-3))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize(
    ("schedule", "shape"),
    [
        ("cosine", lambda t: 0.1 + 0.9 * (1 + math.cos(math.pi * t)) / 2),
        ("linear", lambda t: 1 - 0.9 * t),
        ("constant", lambda t: 1.0),
    ],
)
def test_the_learning_rate_follows_its_schedule(
    run: Run, schedule: str, shape: Callable[[float], float]
) -> None:
    rows = logged(run(train, schedule=schedule, lr=1e-3, max_steps=9, warmup_steps=1))
    found = [row["lr"] / 1e-3 for row in rows]
    wanted = [shape((step - 1) / 8) for step in range(1, 10)]
    assert found == pytest.approx(wanted, rel=1e-4)


def test_wsd_holds_the_rate_and_lets_it_fall_at_the_end(run: Run) -> None:
    rows = logged(run(train, schedule="wsd", lr=1e-3, max_steps=20, warmup_steps=2))
    rates = [row["lr"] for row in rows]
    assert rates[2:16] == pytest.approx([1e-3] * 14)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-3)


def test_the_best_weights_are_published_when_asked_for(run: Run, tmp_path: Path) -> None:
    # A rate that rises until it ruins the model: the best look is not the last.
    work = run(train, best_every=2, lr=1.0, max_steps=8, warmup_steps=7, schedule="constant")
    looks = [
        e["values"]["validation_loss"] for e in events(work, "metric") if "validation_loss" in e["values"]
    ]
    assert len(looks) == 4
    assert min(looks) < looks[-1]
    assert metrics(work)["validation_loss"] == pytest.approx(min(looks), rel=1e-5)


def test_old_checkpoints_go_and_asynchronous_ones_need_cuda(run: Run) -> None:
    work = run(train, checkpoint_every=1, keep_checkpoints=1, async_checkpoint=True)
    kept = [p for p in (work / "state" / "checkpoints").iterdir() if p.is_dir() and not p.is_symlink()]
    assert len(kept) == 1
    assert (work / "state" / "checkpoints" / "LATEST").resolve() == kept[0]
    assert "async_checkpoint needs CUDA" in events(work, "warning")[0]["text"]


def test_weights_can_be_held_and_published_in_bf16(run: Run) -> None:
    work = run(train, precision="bf16-weights", save_precision="bf16")
    weights = load_file(work / "output" / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert json.loads((work / "output" / "model" / "config.json").read_text())["dtype"] == "bfloat16"


def test_all_answers_of_a_conversation_are_learned_when_asked_for(
    run: Run, tmp_path: Path, curated: Path
) -> None:
    turns = [("What is a graph?", "Nodes and edges."), ("And a tree?", "A graph without a cycle.")]
    messages = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    data = tmp_path / "data"
    (data / "sft").mkdir(parents=True)
    (data / "tokenizer").symlink_to(curated / "tokenizer")
    for split in ("train", "validation"):
        (data / "sft" / f"{split}.jsonl").write_text((json.dumps({"messages": messages}) + "\n") * 8)
    tokenizer = load_tokenizer(curated)
    for answers, wanted in (
        ("last", "A graph without a cycle.<|im_end|>"),
        ("all", "Nodes and edges.<|im_end|>"),
    ):
        work = run(train, data, answers=answers)
        stored = load_file(work / "state" / "train.safetensors")
        end = int(stored["offsets"][1])
        labels = [label for label in stored["labels"][:end].tolist() if label != -100]
        assert tokenizer.decode(labels).startswith(wanted)
        whole = tokenizer.decode([*stored["inputs"][:end].tolist(), labels[-1]])
        assert whole == tokenizer.apply_chat_template(messages, tokenize=False).removesuffix("\n")


def load_tokenizer(curated: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(curated / "tokenizer")
