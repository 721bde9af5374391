"""What real training steps hold in memory, item by item, against what is predicted of them before."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from pipeline import schema
from pipeline.engines.automodel.footprint import Follower
from pipeline.plan.training import eager

WITHIN = 0.1
WIDE = {  # untied, short sequences, the feed-forward the widest part of a layer
    "hidden_size": 64,
    "intermediate_size": 160,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "vocab_size": 1000,
    "context": 96,
    "tie_embeddings": False,
}
LONG = {  # tied, long sequences, many heads: attention's scores are the widest
    "hidden_size": 48,
    "intermediate_size": 96,
    "layers": 4,
    "heads": 6,
    "kv_heads": 3,
    "vocab_size": 700,
    "context": 160,
    "tie_embeddings": True,
}
SHAPES = {
    "wide fp32": (WIDE, "fp32"),
    "long bf16": (LONG, "bf16"),
    "long fp32": (LONG, "fp32"),
    "wide bf16": (WIDE, "bf16"),
}
KINDS: dict[str, dict[str, Any]] = {
    "SFT": {},
    "LoRA": {"peft": "lora", "lora": {"rank": 8}},
    "DPO": {"exact_kl": False},
}


def case(shape: str, kind: str, processes: int, parallel: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """A run of ``footprint_runs.py``, of two micro batches a step."""
    model, precision = SHAPES[shape]
    pairs = kind.startswith("DPO")
    size = 4 if pairs else 8
    return {
        "stage": "align" if pairs else "train",
        "shape": model,
        "group": 2 if pairs else 1,
        "shortest": 0.7,
        "labels": 0.4 if pairs else 0.8,
        "settings": {
            "precision": precision,
            "micro_batch_size": size,
            "global_batch_size": 2 * size * processes,
            "parallel": parallel,
            **KINDS[kind],
            **settings,
        },
    }


def _one() -> dict[str, dict[str, Any]]:
    made = {
        f"{kind}, {shape}, recompute {again}": case(shape, kind, 1, {"recompute": again})
        for shape in ("wide fp32", "long bf16")
        for kind in KINDS
        for again in ("none", "full")
    }
    for shape in ("long fp32", "wide bf16"):
        made[f"SFT, {shape}, recompute selective"] = case(shape, "SFT", 1, {"recompute": "selective"})
    made["SFT, bf16 weights"] = case("wide bf16", "SFT", 1, {}, precision="bf16-weights")
    made["SFT, packed"] = case("long bf16", "SFT", 1, {}, packing=True)
    made["LoRA, packed"] = case("long fp32", "LoRA", 1, {}, packing=True)
    made["DPO, live reference"] = case("wide fp32", "DPO", 1, {}, reference="live")
    made["DPO, copy for the KL"] = case("wide bf16", "DPO", 1, {}, exact_kl=True)
    some = {"lora": {"rank": 4, "targets": ["*.q_proj", "*.v_proj"]}}
    made["LoRA on queries and values"] = case("wide bf16", "LoRA", 1, {}, **some)
    made["SFT, one micro batch a step"] = case("wide fp32", "SFT", 1, {}, global_batch_size=8)
    return made


def _two() -> dict[str, dict[str, Any]]:
    return {
        f"{kind}, {shape}, recompute {again}, 2 x {strategy}": case(
            shape, kind, 2, {"recompute": again, "strategy": strategy}
        )
        for strategy, plain, again_in in (
            ("ddp", "wide fp32", "long bf16"),
            ("fsdp2", "long bf16", "wide fp32"),
        )
        for kind in KINDS
        for again, shape in (("none", plain), ("full", again_in))
    } | {
        "SFT, wide bf16, 2 x fsdp2": case("wide bf16", "SFT", 2, {"strategy": "fsdp2"}),
        "SFT, wide bf16, recompute full, 2 x ddp": case("wide bf16", "SFT", 2, {"recompute": "full"}),
    }


CASES = {1: _one(), 2: _two()}


@pytest.fixture(scope="module", params=CASES, ids=lambda count: f"{count} process" + "es" * (count > 1))
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """All runs of a number of processes; returns it and the folder of what they left."""
    count, folder = request.param, tmp_path_factory.mktemp("runs")
    (folder / "cases.json").write_text(json.dumps(CASES[count]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    counts = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    program = [
        sys.executable,
        str(Path(__file__).with_name("footprint_runs.py")),
        str(folder),
        str(folder / "cases.json"),
    ]
    logs = [folder / f"log-{rank}.txt" for rank in range(count)]
    started = []
    for rank, log in enumerate(logs):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        with log.open("w") as file:
            environment = {**os.environ, **together, **counts, **place}
            started.append(subprocess.Popen(program, env=environment, stdout=file, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=280) for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return count, folder


def predicted(one: dict[str, Any], count: int, batch: dict[str, Any]) -> eager.Footprint:
    """The prediction for a micro batch."""
    section = schema.Align if one["stage"] == "align" else schema.Train
    given = {**one["settings"], "parallel": schema.Parallel(**one["settings"]["parallel"])}
    if "lora" in given:
        given["lora"] = schema.Lora(**given["lora"])
    size = eager.Batch(*(batch[name] for name in ("sequences", "length", "tokens", "labels")))
    return eager.footprint(schema.Model(**one["shape"]), section(**given), count, device="cpu", batch=size)


def test_every_item_is_what_was_predicted(runs: tuple[int, Path], subtests: pytest.Subtests) -> None:
    count, folder = runs
    for name, one in CASES[count].items():
        for rank in range(count):
            found = json.loads((folder / name / f"footprint-{rank}.json").read_text())
            held = found["held"]
            assert [batch["step"] for batch in found["micro_batches"]][-1] == 1
            batch = found["micro_batches"][-1]  # of the second step, when everything is there
            ours = predicted(one, count, batch)
            with subtests.test(name, rank=rank):
                measured = {
                    **{
                        item: held[item]
                        for item in ("weights", "adapters", "reference", "gradients", "optimiser", "buckets")
                    },
                    **{item: batch["bytes"][item] for item in ("activations", "logits", "buffers")},
                    "passing": batch["bytes"]["peak"],
                }
                figures = {item: getattr(ours, item) for item in measured}
                assert figures == {item: pytest.approx(value, rel=WITHIN) for item, value in measured.items()}
                assert measured["activations"] > 3 * held["weights"]  # or nothing much was held to account
                assert batch["bytes"]["unsharded"] <= held["gradients"] / 2  # FSDP2 keeps no whole ones
                assert found["rss"] > ours.peak


def test_the_follower_sees_what_the_allocator_gives_out() -> None:
    """PyTorch's profiler is told of every allocation, also of those inside an operation."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=500, **sizes))
    tokens = torch.randint(0, 500, (4, 64))

    def step() -> None:
        model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
        model.zero_grad()

    step()
    follower = Follower(model, 500)
    follower.begin([tokens], [*model.parameters(), *model.buffers()])
    with follower:
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    now = highest = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            highest = max(highest, now)
    assert follower.peak == pytest.approx(highest, rel=0.05)
    assert 0 < follower.highest["logits"] < follower.highest["activations"] < follower.peak


def test_what_is_predicted_follows_from_the_shape() -> None:
    model = schema.Model(**WIDE)
    settings = schema.Train(precision="bf16", micro_batch_size=2)
    plain = eager.setting_of(model, settings, 1)
    assert plain.batch == eager.Batch(2, 96, 192, 192)
    # By hand: two norms of 4 + 4 bytes x width and a normaliser, bf16 copies of five inputs, queries, keys, values and
    # attention's output in bf16 with a normaliser a head, four inner tensors.
    by_hand = 2 * (8 * 64 + 4) + 5 * 2 * 64 + 2 * (64 + 32 + 32 + 64) + 4 * 4 + 4 * 2 * 160
    assert eager.total(eager.layer(plain)) == by_hand
    assert eager.parameters(model) == sum(p.numel() for p in LlamaForCausalLM(_config(model)).parameters())
    kinds = [
        schema.Align(micro_batch_size=2),
        schema.Align(micro_batch_size=2, loss="kto"),
        schema.Reward(micro_batch_size=2),
    ]
    assert [eager.setting_of(model, kind, 1).batch.sequences for kind in kinds] == [4, 6, 4]


def _config(model: schema.Model) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        tie_word_embeddings=model.tie_embeddings,
    )
