"""Broken and hostile base folders: each is refused by one sentence that names the file, never by a traceback."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import recipe
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.runner import base, base_files
from pipeline.toolchains import ROOT

HIDDEN, INNER, VOCABULARY, LAYERS = 4, 8, 6, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_attention_heads": 2,
    "tie_word_embeddings": False,
}
TOKENIZER: dict[str, Any] = {
    "model": {"vocab": {"a": 0, "b": 1}},
    "added_tokens": [{"id": 5, "content": "<end>"}],
}


def tensors() -> dict[str, list[int]]:
    found = {
        "model.embed_tokens.weight": [VOCABULARY, HIDDEN],
        "model.norm.weight": [HIDDEN],
        "lm_head.weight": [VOCABULARY, HIDDEN],
    }
    for layer in range(LAYERS):
        at = f"model.layers.{layer}"
        found |= {f"{at}.self_attn.{name}_proj.weight": [HIDDEN, HIDDEN] for name in "qkvo"}
        found |= {f"{at}.mlp.{name}_proj.weight": [INNER, HIDDEN] for name in ("gate", "up")}
        found[f"{at}.mlp.down_proj.weight"] = [HIDDEN, INNER]
        found |= {f"{at}.{name}_layernorm.weight": [HIDDEN] for name in ("input", "post_attention")}
    return found


def safetensors(
    shapes: dict[str, list[int]], change: Callable[[dict[str, Any]], object] | None = None
) -> bytes:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    if change is not None:
        change(header)
    plain = json.dumps(header).encode()
    return len(plain).to_bytes(8, "little") + plain + bytes(end)


def put(name: str, **values: Any) -> Callable[[Path], None]:
    """Change fields of one of the folder's JSON files."""

    def change(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**known, **values}))

    return change


def write(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def shards(weight_map: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        index = {} if weight_map is None else {"weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda folder: (folder / "model.safetensors").write_bytes(safetensors(tensors(), change)) and None


def renamed(name: str, target: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).rename(folder / target) and None


def a_folder(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return change


def dangling(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to("nowhere")

    return change


NORM = "model.norm.weight"
BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (dangling("config.json"), "no config.json"),
    "configuration is a folder": (a_folder("config.json"), "no config.json"),
    "configuration is no JSON": (write("config.json", b"{"), "config.json is not JSON"),
    "configuration is not UTF-8": (write("config.json", b'{"a": "\xff"}'), "config.json is not JSON"),
    "configuration is a list": (write("config.json", b"[]"), "config.json holds a list"),
    "configuration is deep": (write("config.json", b'{"a":' * 100_000), "config.json is nested too deeply"),
    "configuration holds NaN": (
        put("config.json", rms_norm_eps=float("nan")),
        "config.json is not JSON: NaN",
    ),
    "architectures is a text": (put("config.json", architectures="LlamaForCausalLM"), "not a list of names"),
    "architectures holds numbers": (put("config.json", architectures=[1]), "not a list of names"),
    "architectures is missing": (put("config.json", architectures=None), "is a none named"),
    "vocabulary is a text": (put("config.json", vocab_size="6"), "vocab_size is '6'"),
    "vocabulary is negative": (put("config.json", vocab_size=-6), "vocab_size is -6"),
    "positions is a list": (
        put("config.json", max_position_embeddings=[512]),
        "max_position_embeddings is [512]",
    ),
    "layers are true": (put("config.json", num_hidden_layers=True), "num_hidden_layers is True"),
    "hidden size is absurd": (put("config.json", hidden_size=10**30), "hidden_size is 1000"),
    "hidden size is half": (put("config.json", hidden_size=4.5), "hidden_size is 4.5"),
    "rope base is a text": (put("config.json", rope_theta="1e4"), "rope_theta is '1e4'"),
    "rope scaling is a list": (put("config.json", rope_scaling=[1]), "rope_scaling is [1]"),
    "tied is a text": (put("config.json", tie_word_embeddings="no"), "tie_word_embeddings is 'no'"),
    "end token is a text": (put("config.json", eos_token_id="</s>"), "eos_token_id is '</s>'"),
    "more layers than weights": (put("config.json", num_hidden_layers=3), "no model.layers.2."),
    "another width": (put("config.json", hidden_size=8), "config.json makes it [6, 8]"),
    "index without weight_map": (shards(None), "has no weight_map"),
    "weight_map is a list": (shards(["one.safetensors"]), "has no weight_map"),
    "weight_map holds numbers": (shards({NORM: 1}), "something that is no file"),
    "weight_map leads out": (shards({NORM: "../one.safetensors"}), "no *.safetensors file of the folder"),
    "weight_map names a pickle": (shards({NORM: "pytorch_model.bin"}), "no *.safetensors file of the folder"),
    "weight_map names what is gone": (
        shards({NORM: "two.safetensors"}),
        "not complete: two.safetensors missing",
    ),
    "a tensor is not where it should be": (
        shards({"x": "one.safetensors"}),
        "has no x, which model.safetensors.index",
    ),
    "index is a text": (write("model.safetensors.index.json", b'"x"'), "holds a str"),
    "weights under another name": (
        renamed("model.safetensors", "adapter.safetensors"),
        "under no name that is read",
    ),
    "weights are pickled": (renamed("model.safetensors", "pytorch_model.bin"), "is a pickle and is not read"),
    "weights are empty": (write("model.safetensors", b""), "is cut off"),
    "weights are cut off": (write("model.safetensors", safetensors(tensors())[:-1]), "is cut off"),
    "header is absurdly long": (write("model.safetensors", b"\xff" * 90), "is cut off"),
    "header is no JSON": (write("model.safetensors", (4).to_bytes(8, "little") + b"{{{{"), "is cut off"),
    "header is a list": (write("model.safetensors", (2).to_bytes(8, "little") + b"[]"), "is cut off"),
    "an entry is a number": (header(lambda h: h.update({NORM: 4})), "is no tensor"),
    "an entry has no offsets": (header(lambda h: h[NORM].pop("data_offsets")), "is no tensor"),
    "offsets are texts": (header(lambda h: h[NORM].update(data_offsets=["0", "16"])), "is no tensor"),
    "a shape is negative": (header(lambda h: h[NORM].update(shape=[-4])), "is no tensor"),
    "a type is unknown": (header(lambda h: h[NORM].update(dtype="F31")), "is no tensor"),
    "tensors overlap": (header(lambda h: h[NORM].update(data_offsets=[0, 16])), "overlap, or leave gaps"),
    "a layer is missing": (
        write(
            "model.safetensors", safetensors({k: v for k, v in tensors().items() if "layers.1.mlp" not in k})
        ),
        "there is no model.layers.1.mlp.",
    ),
    "tokenizer is no JSON": (write("tokenizer.json", b"\x00"), "tokenizer.json is not JSON"),
    "tokenizer has no model": (write("tokenizer.json", b"{}"), "has no vocabulary"),
    "vocabulary is a number": (put("tokenizer.json", model={"vocab": 4}), "has no vocabulary"),
    "ids are texts": (put("tokenizer.json", model={"vocab": {"a": "0"}}), "a token's id is no number"),
    "added tokens are texts": (put("tokenizer.json", added_tokens=["<end>"]), "not a list of tokens"),
    "an added token has no content": (put("tokenizer.json", added_tokens=[{"id": 2}]), "has no content"),
    "tokenizer is larger": (put("tokenizer.json", added_tokens=[{"id": 6, "content": "x"}]), "has 7 tokens"),
    "tokenizer's configuration is a list": (write("tokenizer_config.json", b"[1]"), "holds a list"),
    "end token is a number": (put("tokenizer_config.json", eos_token=5), "eos_token is 5"),
    "template is a number": (put("tokenizer_config.json", chat_template=5), "chat_template is 5"),
    "length is a text": (put("tokenizer_config.json", model_max_length="512"), "model_max_length is '512'"),
    "special tokens are a list": (write("special_tokens_map.json", b"[]"), "holds a list"),
    "generation is a number": (write("generation_config.json", b"5"), "holds a int"),
    "temperature is a text": (put("generation_config.json", temperature="hot"), "temperature is 'hot'"),
    "end tokens are texts": (put("generation_config.json", eos_token_id=["x"]), "eos_token_id is ['x']"),
}


def whole(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<end>", "model_max_length": 1e30})
    )
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 1], "temperature": 0.7}))
    (folder / "model.safetensors").write_bytes(safetensors(tensors()))
    return folder


def loaded(tmp_path: Path, folder: Path) -> recipe.LoadedRecipe:
    text = (
        f"use: {{curate: documentation}}\nstages: [curate, train]\nmodel: {{base: {folder}, context: 128}}\n"
    )
    (tmp_path / "mine.yaml").write_text(text)
    return recipe.load(str(tmp_path / "mine.yaml"), ROOT, "", "local")


def test_a_whole_base_is_taken(tmp_path: Path) -> None:
    base.check(loaded(tmp_path, whole(tmp_path / "m")))
    assert base_files.weights(tmp_path / "m") == tensors()
    shards(dict.fromkeys(tensors(), "one.safetensors"))(tmp_path / "m")
    base.check(loaded(tmp_path, tmp_path / "m"))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_base_is_refused_by_a_sentence(name: str, tmp_path: Path) -> None:
    break_it, wanted = BROKEN[name]
    folder = whole(tmp_path / "m")
    break_it(folder)
    with pytest.raises(UserError) as raised:
        base.check(loaded(tmp_path, folder))
    said = str(raised.value)
    assert wanted in said
    assert str(folder) in said
    assert "mine.yaml:3: model.base" in said
    assert len(said) < 1000


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = whole(tmp_path / "m")

    def refuse(self: Path) -> bytes:  # root, as whom tests may run, may read everything
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(UserError, match=r"json cannot be read: Permission denied"):
        base.check(loaded(tmp_path, folder))


def test_the_command_line_gives_two_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = whole(tmp_path / "m")
    shards(None)(folder)
    loaded(tmp_path, folder)
    assert main(["plan", str(tmp_path / "mine.yaml"), "--runs", str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "has no weight_map" in said
    assert "Traceback" not in said
