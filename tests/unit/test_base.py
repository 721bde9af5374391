"""The base model: where it is looked for, and everything that is checked before anything starts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline import recipe, schema
from pipeline.errors import UserError
from pipeline.runner import base, base_content
from pipeline.toolchains import ROOT

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 3,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
TOKENIZER = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}}


def safetensors(tensors: dict[str, tuple[int, ...]], dtype: str = "F32", width: int = 4) -> bytes:
    header, end = {}, 0
    for name, shape in tensors.items():
        size = math.prod(shape) * width
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    return with_header(header, end)


def with_header(header: object, data: int) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def folder(path: Path, **files: object) -> Path:
    """A whole base; ``files`` take others' places: JSON, bytes as they are, or None for none."""
    path.mkdir(parents=True, exist_ok=True)
    weights = safetensors(dict(base_content.expected(CONFIG)))
    for name, content in {
        "config.json": CONFIG, "tokenizer.json": TOKENIZER, "model.safetensors": weights, **files
    }.items():  # fmt: skip
        if content is not None:
            plain = content if isinstance(content, bytes) else json.dumps(content).encode()
            (path / name).write_bytes(plain)
    return path


def fitting(**changes: object) -> dict[str, object]:
    """Configuration and weights of a model that differs from the usual one."""
    config = {**CONFIG, **changes}
    return {"config.json": config, "model.safetensors": safetensors(dict(base_content.expected(config)))}


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
        assert "model.safetensors: is cut off" in fault(tmp_path, base=m)
    folder(m)
    assert "made for 4096" in fault(tmp_path, base=m, context=8192)
    index = {"weight_map": {"w": "model-1.safetensors"}}
    folder(m, **{"model.safetensors.index.json": index})
    assert "names model-1.safetensors, which is missing" in fault(tmp_path, base=m)
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
        m = folder(tmp_path / "m", **fitting(**config))
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
