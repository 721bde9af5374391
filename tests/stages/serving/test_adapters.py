"""Adapters on the CPU target: each merged, held to the model that it is, and served under its own name."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.serving import control, processes, server, service
from pipeline.serving.server import STUB
from tests.miniature import PROMPTS, port_settings, run_stage

QUESTIONS = ["What does `socket.bind` do?", "What is `socket.AF_INET`?", "Why?"]
TOKENS = 16
LAYERS = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")


def make_adapter(model: Path, folder: Path, seed: int, **settings: Any) -> Path:
    """A PEFT folder of random numbers for three layers of each block."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(seed)
    weights = {}
    for name, weight in load_file(model / "model.safetensors").items():
        layer = name.removesuffix(".weight")
        if layer.endswith(LAYERS):
            stem, (outer, inner) = f"base_model.model.{layer}", weight.shape
            weights[f"{stem}.lora_A.weight"] = torch.randn(4, inner) * 0.1
            weights[f"{stem}.lora_B.weight"] = torch.randn(outer, 4) * 0.3
            if settings.get("use_dora"):
                weights[f"{stem}.lora_magnitude_vector"] = torch.rand(outer) + 0.5
    folder.mkdir()
    save_file(weights, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    return folder


@pytest.fixture(scope="module")
def adapters(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, model = tmp_path_factory.mktemp("adapters"), inputs["pretrain"] / "model"
    return {
        "pirate": make_adapter(model, folder / "one", 5),
        "polite": make_adapter(model, folder / "two", 6, use_dora=True, use_rslora=True),
    }


@pytest.fixture(scope="module")
def output(
    inputs: dict[str, Path], adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What the export of the base with both adapters published."""
    work = tmp_path_factory.mktemp("export") / "work"
    settings = {"adapters": {name: str(path) for name, path in adapters.items()}}
    status, told = run_stage("export", work, inputs, settings)
    assert status == 0, told + (work / "log.txt").read_text()
    assert not list((work / "state").iterdir())
    return work / "output"


@pytest.fixture(scope="module")
def served(output: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    folder = tmp_path_factory.mktemp("deploy")
    path = folder / "server.json"
    extra = {"server_record": str(path)}
    status, told = run_stage("deploy", folder / "work", {"export": output}, port_settings(), extra)
    assert status == 0, told
    record = service.read(path)
    assert record is not None
    yield record
    last = service.read(path)
    assert last is not None
    service.stop(last)


def path_of(record: service.Service) -> Path:
    """Where the record lies: the gateway keeps its files in the folder of that name."""
    return Path(record.gateway.settings).parent.with_suffix(".json")


def unmerged(bundle: Path, adapter: Path) -> list[str]:
    """Hugging Face's greedy answers with the adapter beside the weights, by its definition."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(bundle, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(bundle)
    config = json.loads((adapter / "adapter_config.json").read_text())
    weights = load_file(adapter / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"] ** (0.5 if config.get("use_rslora") else 1)

    def beside(layer: str) -> Any:
        stem, linear = f"base_model.model.{layer}", model.get_submodule(layer)
        down, up = (weights[f"{stem}.lora_{side}.weight"] for side in "AB")
        size = (linear.weight + scale * up @ down).norm(dim=1).detach()
        magnitude = weights.get(f"{stem}.lora_magnitude_vector", size) / size

        def hook(_: Any, given: Any, result: Any) -> Any:
            return magnitude * (result + scale * (given[0] @ down.T @ up.T))

        return linear.register_forward_hook(hook)

    for name in {name.split(".lora_")[0].removeprefix("base_model.model.") for name in weights}:
        beside(name)
    found = []
    for question in QUESTIONS:
        turns = [{"role": "user", "content": question}]
        ids = torch.tensor([tokenizer.apply_chat_template(turns, add_generation_prompt=True)])
        mask = torch.ones_like(ids)
        output = model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
        found.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return found


def answers(record: service.Service, model: str) -> list[str]:
    found = []
    for question in QUESTIONS:
        body = json.dumps({"text_input": question, "max_tokens": TOKENS}).encode()
        address = f"http://{record.gateway.address}/v2/models/{model}/generate"
        with urllib.request.urlopen(
            urllib.request.Request(address, body, {"Content-Type": "application/json"}), timeout=30
        ) as answer:
            found.append(json.load(answer)["text_output"])
    return found


def shown(texts: list[str]) -> list[str]:
    """Bytes that are no text: Hugging Face shows several replacement characters for some, OpenVINO one."""
    import re

    return [re.sub("\ufffd+", "\ufffd", text) for text in texts]


def test_each_adapter_is_a_model_of_its_own_that_answers_as_it_should(
    served: service.Service, output: Path, adapters: dict[str, Path]
) -> None:
    own = shown(answers(served, "assistant"))
    for name, adapter in adapters.items():
        got = shown(answers(served, name))
        assert got == shown(unmerged(output / "bundle", adapter))
        assert got != own


def test_a_dead_adapter_is_started_anew_and_the_base_answers_meanwhile(
    served: service.Service, output: Path
) -> None:
    [stub] = [
        each
        for each in processes.of_session(served.version.pid)
        if STUB in each.command[0] and any("/polite/" in word for word in each.command)
    ]
    own, [keeps] = answers(served, "assistant"), [answers(served, "polite")]
    os.kill(stub.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        # Raises where the base is refused or its answer is cut.
        assert answers(served, "assistant") == own
        state = control.state(served.gateway.control)
        if state["current"]["address"] != served.version.address:
            break
        assert time.monotonic() < deadline
    assert answers(served, "assistant") == own
    assert answers(served, "polite") == keeps
    while server.is_running(served.version):  # drained, then stopped
        assert time.monotonic() < deadline


def test_a_variant_is_held_to_the_merged_model(output: Path) -> None:
    said = json.loads((output / "parity.json").read_text())
    assert set(said["variants"]) == {"pirate", "polite"}
    assert said["variants"]["pirate"]["logits"] != said["logits"]
    for figures in said["variants"].values():
        assert figures["faults"] == []
        assert figures["equal"] + figures["excused"] == PROMPTS
        assert figures["logits"]["kl"] < 1e-8
        assert figures["template_equal"] == PROMPTS
        # Another model than the base, on the same documents.
        assert figures["perplexity"]["before"] != pytest.approx(said["perplexity"]["before"], rel=1e-3)


def test_a_client_reads_the_names_in_the_exports_record(output: Path) -> None:
    said = json.loads((output / "export.json").read_text())["models"]
    assert said == {name: {"model": name, "lora": ""} for name in ("assistant", "pirate", "polite")}


def test_a_variant_in_small_weights_is_compressed_as_the_base_is(
    inputs: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    loose = {"different": 1.0, "top1_agreement": 0.2, "kl": 1.0}
    settings = {"weights": "int8", "adapters": {"pirate": str(adapters["pirate"])}, "tolerance": loose}
    status, told = run_stage("export", tmp_path / "w", inputs, settings)
    assert status == 0, told
    repository = tmp_path / "w" / "output" / "repository"
    sizes = [
        (repository / name / "1/openvino/openvino_model.bin").stat().st_size
        for name in ("assistant", "pirate")
    ]
    assert sizes[0] == sizes[1]
    said = json.loads((tmp_path / "w" / "output" / "parity.json").read_text())
    assert 1e-8 < said["variants"]["pirate"]["logits"]["kl"] < 0.1
    assert said["variants"]["pirate"]["weights"] == "int8"


def test_a_variant_outside_its_tolerance_stops_the_export_by_name(
    inputs: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    settings = {
        "weights": "int4",
        "adapters": {"polite": str(adapters["polite"])},
        "tolerance": {"different": 1.0, "top1_agreement": 0.0, "kl": 1e-9, "perplexity": 10.0},
    }
    status, told = run_stage("export", tmp_path / "w", inputs, settings)
    assert status == 2, told  # other weights, or a wider tolerance: the user's to choose
    assert "polite: the divergence from the model is" in told
    assert "export.tolerance.kl" in told
    assert "Traceback" not in (tmp_path / "w" / "log.txt").read_text()


def test_an_adapter_of_another_model_is_the_users_to_mend(
    inputs: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "other"
    folder.mkdir()
    weights = load_file(adapters["pirate"] / "adapter_model.safetensors")
    save_file(
        {name.replace("layers.1", "layers.8"): each for name, each in weights.items()},
        folder / "adapter_model.safetensors",
    )
    (folder / "adapter_config.json").write_text((adapters["pirate"] / "adapter_config.json").read_text())
    status, told = run_stage("export", tmp_path / "w", inputs, {"adapters": {"pirate": str(folder)}})
    assert status == 2
    assert "export.adapters.pirate: " in told
    assert "model.layers.8.mlp.down_proj" in told
