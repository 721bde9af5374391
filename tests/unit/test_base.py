"""The base model: where it is looked for, and everything that is checked before anything starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import recipe, schema
from pipeline.errors import UserError
from pipeline.runner import base
from pipeline.toolchains import ROOT

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 3, "max_position_embeddings": 4096}
TOKENIZER = {"model": {"vocab": {"a": 0, "b": 1}}}


def folder(path: Path, **files: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, content in {"config.json": CONFIG, "tokenizer.json": TOKENIZER, **files}.items():
        if content is not None:
            (path / name).write_text(json.dumps(content))
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return path


def loaded(tmp_path: Path, **model: object) -> recipe.LoadedRecipe:
    lines = "\n".join(f"  {key}: {value}" for key, value in model.items())
    text = f"use: {{curate: documentation}}\nstages: [curate, train]\nmodel:\n{lines}\n"
    (tmp_path / "mine.yaml").write_text(text)
    return recipe.load(str(tmp_path / "mine.yaml"), ROOT, "", "local")


def fault(tmp_path: Path, **model: object) -> str:
    with pytest.raises(UserError) as raised:
        base.check(loaded(tmp_path, **model))
    return str(raised.value)


def test_a_whole_base_passes(tmp_path: Path) -> None:
    base.check(loaded(tmp_path, base=folder(tmp_path / "m"), context=128))


def test_each_fault_is_told_with_file_and_remedy(tmp_path: Path) -> None:
    m = folder(tmp_path / "m", **{"config.json": {**CONFIG, "architectures": ["MixtralForCausalLM"]}})
    said = fault(tmp_path, base=m)
    assert "mine.yaml:4: model.base" in said
    assert "is a MixtralForCausalLM; what can be trained here is LlamaForCausalLM" in said
    folder(m, **{"config.json": {**CONFIG, "vocab_size": 1}})
    assert "has 2 tokens and the model room for 1" in fault(tmp_path, base=m)
    added = {**TOKENIZER, "added_tokens": [{"id": 7, "content": "<|end|>"}]}
    folder(m, **{"config.json": CONFIG, "tokenizer.json": added})
    assert "has 8 tokens and the model room for 3" in fault(tmp_path, base=m)
    folder(m)
    for broken in (b"", (m / "model.safetensors").read_bytes()[:-1], b"\xff" * 90):
        (m / "model.safetensors").write_bytes(broken)
        assert "model.safetensors is cut off" in fault(tmp_path, base=m)
    folder(m)
    assert "made for 4096" in fault(tmp_path, base=m, context=8192)
    index = {"weight_map": {"w": "model-1.safetensors"}}
    folder(m, **{"model.safetensors.index.json": index})
    assert "not complete: model-1.safetensors missing" in fault(tmp_path, base=m)
    assert "there are: llama3" in fault(tmp_path, base=folder(tmp_path / "n"), chat_template="alpaca")


def test_a_hub_model_is_found_in_the_cache_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    model = schema.Model(base="meta-llama/Llama-3.1-8B")
    assert base.folder(model) is None
    assert "make fetch RECIPE=" in fault(tmp_path, base=model.base)
    assert "HF_TOKEN" in fault(tmp_path, base=model.base)
    kept = tmp_path / "models--meta-llama--Llama-3.1-8B"
    snapshot = folder(kept / "snapshots" / "0123abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123abc")
    assert base.folder(model) == snapshot
    assert base.folder(schema.Model(base=model.base, revision="0123abc")) == snapshot
    base.check(loaded(tmp_path, base=model.base, context=128))


def test_a_folder_of_the_same_name_comes_before_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "org" / "name")
    assert not base.is_hub_id("org/name")
    assert base.is_hub_id("org/other")
    assert not base.is_hub_id("/org/name")
    assert not base.is_hub_id("models/llama/8b")


def test_targets_of_adapters_are_held_to_the_bases_own_layers(tmp_path: Path) -> None:
    def said(config: dict[str, object], targets: str) -> str | None:
        m = folder(tmp_path / "m", **{"config.json": {**CONFIG, "num_hidden_layers": 2, **config}})
        made = loaded(tmp_path, base=m)
        made.settings.train.peft, made.settings.train.lora.targets = "lora", [targets]
        try:
            base.check(made)
        except UserError as error:
            return str(error)
        return None

    assert "names no linear layer of a Llama of 2 layers" in str(said({}, "*.layers.2.*"))
    assert "(tied)" in str(said({"tie_word_embeddings": True}, "lm_head"))
    assert said({"tie_word_embeddings": False}, "lm_head") is None
    assert said({"tie_word_embeddings": True}, "*.layers.1.*") is None
