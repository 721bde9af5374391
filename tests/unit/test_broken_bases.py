"""Base folders that are broken, or meant to do harm: each is one sentence with the file's name, exit status 2, no traceback."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline import base_files
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.runner import base, base_content
from tests.unit.test_base import CONFIG, TOKENIZER, fitting, folder, loaded, safetensors, with_header

WEIGHTS = dict(base_content.expected(CONFIG))
ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def config(**changes: Any) -> dict[str, Any]:
    return {"config.json": {key: value for key, value in {**CONFIG, **changes}.items() if value is not ...}}


def tokenizer(**changes: Any) -> dict[str, Any]:
    return {"tokenizer.json": {**TOKENIZER, **changes}}


def vocabulary(**changes: Any) -> dict[str, Any]:
    return tokenizer(model={**TOKENIZER["model"], **changes})


def weights(header: object, data: int = 4) -> dict[str, Any]:
    return {"model.safetensors": with_header(header, data)}


def index(content: Any, **shards: Any) -> dict[str, Any]:
    return {"model.safetensors": None, "model.safetensors.index.json": content, **shards}


def without(name: str) -> dict[str, Any]:
    return {"model.safetensors": safetensors({key: shape for key, shape in WEIGHTS.items() if key != name})}


# What is wrong: the files in place of a whole base's, and how the sentence goes on behind the folder.
FILES: dict[str, tuple[dict[str, Any], str]] = {
    "no config": ({"config.json": None}, "there is no config.json"),
    "config is cut off": ({"config.json": b'{"architectures": ['}, "config.json: is not JSON"),
    "config is a list": ({"config.json": [1]}, "config.json: is [1], not a JSON object"),
    "config is null": ({"config.json": b"null"}, "config.json: is None, not a JSON object"),
    "config is not text": ({"config.json": b"\xff\xfe{}"}, "config.json: is not UTF-8 text"),
    "config is deep": ({"config.json": DEEP}, "config.json: is nested too deep"),
    "config is rather deep": ({"config.json": b'{"a": ' + b"[" * 300 + b"]" * 300 + b"}"}, "config.json: is nested more than"),
    "config has a key twice": ({"config.json": b'{"hidden_size": 8, "hidden_size": 9}'}, "config.json: is not JSON: the key 'hidden_size'"),
    "config has a number of 5,000 digits": ({"config.json": b'{"hidden_size": ' + b"9" * 5000 + b"}"}, "config.json: is not JSON"),
    "config is empty": ({"config.json": b""}, "config.json: is not JSON"),
    "no architecture": (config(architectures=...), "config.json: architectures = None names no architecture"),
    "architecture is a word": (config(architectures="LlamaForCausalLM"), "config.json: architectures = 'LlamaForCausalLM' names no"),
    "architectures are lists": (config(architectures=[["LlamaForCausalLM"]]), "config.json: architectures = [['Llama"),
    "another architecture": (config(architectures=["MixtralForCausalLM"]), "config.json: is a MixtralForCausalLM; what can"),
    "no model_type": (config(model_type=...), "config.json: model_type is missing"),
    "model_type is a number": (config(model_type=7), "config.json: model_type = 7 is not a word"),
    "hidden_size is text": (config(hidden_size="8"), "config.json: hidden_size = '8' is not a whole number"),
    "hidden_size is missing": (config(hidden_size=...), "config.json: hidden_size is missing"),
    "hidden_size is null": (config(hidden_size=None), "config.json: hidden_size is missing"),
    "hidden_size is true": (config(hidden_size=True), "config.json: hidden_size = True is not a whole number"),
    "vocab_size is text": (config(vocab_size="many"), "config.json: vocab_size = 'many' is not a whole number"),
    "vocab_size is a list": (config(vocab_size=[3]), "config.json: vocab_size = [3] is not a whole number"),
    "vocab_size is negative": (config(vocab_size=-3), "config.json: vocab_size = -3 is out of range"),
    "layers without end": (config(num_hidden_layers=10**12), "config.json: num_hidden_layers = 1000000000000 is out of range"),
    "layers in halves": (config(num_hidden_layers=2.5), "config.json: num_hidden_layers = 2.5 is not a whole number"),
    "no heads": (config(num_attention_heads=0), "config.json: num_attention_heads = 0 is out of range"),
    "heads that do not divide": (config(num_attention_heads=3, num_key_value_heads=2), "config.json: num_key_value_heads = 2 does not"),
    "context is text": (config(max_position_embeddings="4096"), "config.json: max_position_embeddings = '4096' is not"),
    "context is NaN": ({"config.json": json.dumps({**CONFIG, "max_position_embeddings": float("nan")}).encode()}, "config.json: is not JSON: NaN is not JSON"),
    "norm is NaN": ({"config.json": json.dumps({**CONFIG, "rms_norm_eps": float("nan")}).encode()}, "config.json: is not JSON: NaN is not JSON"),
    "norm is text": (config(rms_norm_eps="1e-5"), "config.json: rms_norm_eps = '1e-5' is not a number"),
    "rope base is infinite": ({"config.json": json.dumps({**CONFIG, "rope_theta": float("inf")}).encode()}, "config.json: is not JSON: Infinity is not JSON"),
    "rope scaling is a word": (config(rope_scaling="linear"), "config.json: rope_scaling = 'linear' is no set of parameters"),
    "rope scaling has a text": (config(rope_scaling={"rope_type": "linear", "factor": "2"}), "config.json: rope_scaling: factor = '2'"),
    "rope base is nought": (config(rope_theta=0), "config.json: rope_theta = 0 is out of range; it must be from 1 to"),
    "rope factor is nought": (config(rope_scaling={"rope_type": "linear", "factor": 0.0}), "config.json: rope_scaling: factor = 0.0 is out of range"),
    "rope of an unknown kind": (config(rope_scaling={"type": "foo", "factor": 2.0}), "config.json: rope_scaling: rope_type = 'foo' is not one of"),
    "rope without its factors": (config(rope_parameters={"rope_type": "llama3", "factor": 8.0}), "config.json: rope_parameters: rope_type llama3 needs low_freq_factor and high"),
    "rope scaling without a factor": (config(rope_scaling={"type": "yarn"}), "config.json: rope_scaling: rope_type yarn needs factor"),
    "norm is nought": (config(rms_norm_eps=0), "config.json: rms_norm_eps = 0 is out of range"),
    "a number beyond all": ({"config.json": json.dumps(CONFIG)[:-1].encode() + b', "rope_theta": 1e999}'}, "config.json: is not JSON: 1e999 is beyond"),
    "a length beyond all": ({"tokenizer_config.json": b'{"model_max_length": 1e999}'}, "tokenizer_config.json: is not JSON: 1e999 is beyond"),
    "another family's model_type": (config(model_type="mistral"), "config.json: model_type = 'mistral' is not that of a LlamaForCausalLM, 'llama'"),
    "fewer layers than weights": (config(num_hidden_layers=CONFIG["num_hidden_layers"] - 1), "model.safetensors: holds model.layers."),
    "pad token is a list": ({"generation_config.json": {"pad_token_id": [0]}}, "generation_config.json: pad_token_id = [0] is no token"),
    "tied is a word": (config(tie_word_embeddings="yes"), "config.json: tie_word_embeddings = 'yes' is not true or false"),
    "activation is a number": (config(hidden_act=3), "config.json: hidden_act = 3 is not a word"),
    "precision is unknown": (config(torch_dtype="float7"), "config.json: torch_dtype = 'float7' is not one of"),
    "precision is a list": (config(dtype=["float32"]), "config.json: dtype = ['float32'] is not one of"),
    "code of its own": (config(auto_map={"AutoModelForCausalLM": "modeling_x.X"}), "config.json: auto_map names code"),
    "quantised": (config(quantization_config={"quant_method": "gptq"}), "config.json: quantization_config says"),
    "end token beyond the rows": (config(eos_token_id=3), "config.json: eos_token_id = 3 is no token"),
    "end token is text": (config(eos_token_id="2"), "config.json: eos_token_id = '2' is no token"),
    "no tokenizer": ({"tokenizer.json": None}, "there is no tokenizer.json"),
    "tokenizer is not JSON": ({"tokenizer.json": b"x"}, "tokenizer.json: is not JSON"),
    "tokenizer is a text": ({"tokenizer.json": "x"}, "tokenizer.json: is 'x', not a JSON object"),
    "tokenizer is deep": ({"tokenizer.json": DEEP}, "tokenizer.json: is nested too deep"),
    "tokenizer without a model": (tokenizer(model=None), "tokenizer.json: model = None is no model"),
    "tokenizer's model is a list": (tokenizer(model=[1]), "tokenizer.json: model = [1] is no model"),
    "tokenizer of an unknown kind": (vocabulary(type="Magic"), "tokenizer.json: model.type = 'Magic' is not one of"),
    "vocabulary is a number": (vocabulary(vocab=3), "tokenizer.json: model.vocab = 3 is no vocabulary"),
    "vocabulary is of texts": (vocabulary(vocab={"a": "0"}), "tokenizer.json: model.vocab has '0' for the id of 'a'"),
    "vocabulary with a negative id": (vocabulary(vocab={"a": -1}), "tokenizer.json: model.vocab has -1"),
    "vocabulary with an id beyond all": (vocabulary(vocab={"a": 10**30}), "tokenizer.json: model.vocab has 1000000000"),
    "vocabulary is empty": (vocabulary(vocab={}), "tokenizer.json: has no tokens"),
    "vocabulary of odd pairs": (vocabulary(type="Unigram", vocab=[["a"]]), "tokenizer.json: model.vocab = [['a']] is no"),
    "merges are a number": (vocabulary(merges=5), "tokenizer.json: model.merges is not a list of pairs"),
    "merges are of three": (vocabulary(merges=[["a", "b", "c"]]), "tokenizer.json: model.merges is not a list of pairs"),
    "added tokens are texts": (tokenizer(added_tokens=["<s>"]), "tokenizer.json: added_tokens has '<s>', which is no token"),
    "added token without id": (tokenizer(added_tokens=[{"content": "<s>"}]), "tokenizer.json: added_tokens has {'content'"),
    "added tokens are a text": (tokenizer(added_tokens="<s>"), "tokenizer.json: added_tokens = '<s>' is no list"),
    "more tokens than rows": (tokenizer(added_tokens=[{"id": 7, "content": "x"}]), "tokenizer.json: has 8 tokens and the model room for 3"),
    "decoder is a word": (tokenizer(decoder="ByteLevel"), "tokenizer.json: decoder = 'ByteLevel' is not a part"),
    "tokenizer's settings are a list": ({"tokenizer_config.json": []}, "tokenizer_config.json: is [], not a JSON object"),
    "end token is a list": ({"tokenizer_config.json": {"eos_token": ["</s>"]}}, "tokenizer_config.json: eos_token = ['</s>'] is no token"),
    "template is a number": ({"tokenizer_config.json": {"chat_template": 5}}, "tokenizer_config.json: chat_template = 5 is neither"),
    "templates without names": ({"tokenizer_config.json": {"chat_template": ["x"]}}, "tokenizer_config.json: chat_template = ['x']"),
    "longest text is a word": ({"tokenizer_config.json": {"model_max_length": "long"}}, "tokenizer_config.json: model_max_length = 'long'"),
    "added decoder is a list": ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "tokenizer_config.json: added_tokens_decoder = [1]"),
    "special tokens are numbers": ({"special_tokens_map.json": {"bos_token": 1}}, "special_tokens_map.json: bos_token = 1 is no token"),
    "template is not text": ({"chat_template.jinja": b"\xff"}, "chat_template.jinja: is not UTF-8 text"),
    "generation is a list": ({"generation_config.json": [1]}, "generation_config.json: is [1], not a JSON object"),
    "temperature is text": ({"generation_config.json": {"temperature": "hot"}}, "generation_config.json: temperature = 'hot' is not a number"),
    "top_p is beyond one": ({"generation_config.json": {"top_p": 7}}, "generation_config.json: top_p = 7 is out of range"),
    "top_k is a fraction": ({"generation_config.json": {"top_k": 1.5}}, "generation_config.json: top_k = 1.5 is not a whole number"),
    "ends are texts": ({"generation_config.json": {"eos_token_id": ["a"]}}, "generation_config.json: eos_token_id = ['a'] is no token"),
    "no weights": ({"model.safetensors": None}, "there is no model.safetensors and no model.safetensors.index.json"),
    "pickled weights": ({"model.safetensors": None, "pytorch_model.bin": b"x"}, "there is no model.safetensors and no model.safetensors.index.json: the folder has no weights in safetensors; pytorch_model.bin is not read"),
    "pickled weights beside others": (
        {"model.safetensors": None, "pytorch_model.bin": b"x", "other.safetensors": safetensors(WEIGHTS)},
        "there is no model.safetensors and no model.safetensors.index.json: the folder has no weights in safetensors; other.safetensors, pytorch_model.bin are not read",
    ),
    "an adapter beside": ({"adapter_config.json": {"base_model_name_or_path": "x"}}, "adapter_config.json: the folder holds an adapter"),
    "weights are empty": ({"model.safetensors": b""}, "model.safetensors: is cut off"),
    "weights are a few bytes": ({"model.safetensors": b"abc"}, "model.safetensors: is cut off"),
    "weights are cut off": ({"model.safetensors": safetensors(WEIGHTS)[:-1]}, "model.safetensors: is cut off"),
    "weights go on": ({"model.safetensors": safetensors(WEIGHTS) + b"x"}, "model.safetensors: is cut off"),
    "header of an absurd length": ({"model.safetensors": b"\xff" * 100}, "model.safetensors: is cut off"),
    "header is not JSON": (weights(b"x" * 20), "model.safetensors: its header: is not JSON"),
    "header is a list": (weights([1], 0), "model.safetensors: its header: is [1], not a JSON object"),
    "header is deep": (weights(DEEP), "model.safetensors: its header: is nested too deep"),
    "tensor is a number": (weights({"w": 3}), "model.safetensors: its header has 3 for 'w', not dtype"),
    "tensor without offsets": (weights({"w": {"dtype": "F32", "shape": [1]}}), "model.safetensors: its header has {'dtype'"),
    "offsets are texts": (weights({"w": {**ONE, "data_offsets": ["0", "4"]}}), "model.safetensors: its header has"),
    "offsets are one number": (weights({"w": {**ONE, "data_offsets": [4]}}), "model.safetensors: its header has"),
    "offsets are negative": (weights({"w": {**ONE, "data_offsets": [-4, 0]}}), "model.safetensors: its header has"),
    "offsets are null": (weights({"w": {**ONE, "data_offsets": None}}), "model.safetensors: its header has"),
    "type is unknown": (weights({"w": {**ONE, "dtype": "F33"}}), "model.safetensors: its header has"),
    "type is a list": (weights({"w": {**ONE, "dtype": ["F32"]}}), "model.safetensors: its header has"),
    "shape is a number": (weights({"w": {**ONE, "shape": 1}}), "model.safetensors: its header has"),
    "shape is of fractions": (weights({"w": {**ONE, "shape": [1.0]}}), "model.safetensors: its header has"),
    "shape is beyond all": (weights({"w": {**ONE, "shape": [10**18, 10**18]}}), "model.safetensors: its header has"),
    "shape and offsets differ": (weights({"w": {**ONE, "shape": [2]}}), "model.safetensors: its header has"),
    "tensors overlap": (weights({"w": ONE, "v": ONE}), "model.safetensors: its tensors overlap at byte 0"),
    "tensors leave a gap": (weights({"w": ONE, "v": {**ONE, "data_offsets": [8, 12]}}, 12), "model.safetensors: its tensors leave a gap at byte 4"),
    "metadata is a list": (weights({"__metadata__": [1], "w": ONE}), "model.safetensors: __metadata__ in its header"),
    "a tensor is missing": (without("model.norm.weight"), "model.safetensors: has no model.norm.weight of shape [8]"),
    "a layer is missing": (config(num_hidden_layers=3), "model.safetensors: has no model.layers.2.self_attn.q_proj.weight of shape [8, 8]"),
    "a tensor has another shape": (
        {"model.safetensors": safetensors({**WEIGHTS, "model.norm.weight": (9,)})},
        "model.safetensors: model.norm.weight has shape [9], and config.json speaks of [8]",
    ),
    "weights are of whole numbers": ({"model.safetensors": safetensors(WEIGHTS, "I8", 1)}, "model.safetensors: model.embed_tokens.weight is held in I8"),
    "index is not JSON": (index(b"{"), "model.safetensors.index.json: is not JSON"),
    "index is a list": (index([1]), "model.safetensors.index.json: is [1], not a JSON object"),
    "index without weight_map": (index({"metadata": {}}), "model.safetensors.index.json: weight_map is None"),
    "index without weight_map beside weights": ({"model.safetensors.index.json": {}}, "model.safetensors.index.json: weight_map is None"),
    "weight_map is empty": (index({"weight_map": {}}), "model.safetensors.index.json: weight_map is {}"),
    "weight_map is a list": (index({"weight_map": ["a.safetensors"]}), "model.safetensors.index.json: weight_map is ['a.safetensors']"),
    "weight_map has numbers": (index({"weight_map": {"w": 1}}), "model.safetensors.index.json: weight_map names 1, which"),
    "weight_map leads out": (index({"weight_map": {"w": "../x.safetensors"}}), "model.safetensors.index.json: weight_map names '../x.safetensors'"),
    "weight_map is absolute": (index({"weight_map": {"w": "/tmp/x.safetensors"}}), "model.safetensors.index.json: weight_map names '/tmp/x.safetensors'"),
    "weight_map names a pickle": (index({"weight_map": {"w": "x.bin"}}, **{"x.bin": b"x"}), "model.safetensors.index.json: weight_map names 'x.bin'"),
    "a shard is missing": (index({"weight_map": {"w": "a.safetensors"}}), "model.safetensors.index.json: names a.safetensors, which is missing"),
    "a shard has not what it should": (
        index({"weight_map": {"w": "a.safetensors"}}, **{"a.safetensors": safetensors({"v": (1,)})}),
        "model.safetensors.index.json: puts w into a.safetensors, which does not hold it",
    ),
}  # fmt: skip


def link_out(m: Path) -> None:
    (m.parent / "secret").write_text("{% set x = 1 %}")
    (m / "chat_template.jinja").symlink_to(m.parent / "secret")


def weights_linked_out(m: Path) -> None:
    (m / "model.safetensors").rename(m.parent / "w.safetensors")
    (m / "model.safetensors").symlink_to(m.parent / "w.safetensors")


def in_place(name: str, make: Callable[[Path], None]) -> Callable[[Path], None]:
    def change(m: Path) -> None:
        (m / name).unlink(missing_ok=True)
        make(m / name)

    return change


# What no bytes of a file can show: folders, links, pipes.
PLACES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a template from elsewhere": (link_out, "chat_template.jinja: is a link that leads out of the folder"),
    "weights from elsewhere": (weights_linked_out, "model.safetensors: is a link that leads out of the folder"),
    "config from a device": (in_place("config.json", lambda p: p.symlink_to("/dev/zero")), "config.json: is a link"),
    "config is a folder": (in_place("config.json", Path.mkdir), "there is no config.json"),
    "config is a pipe": (in_place("config.json", lambda p: os.mkfifo(p)), "there is no config.json"),
    "tokenizer is a folder": (in_place("tokenizer.json", Path.mkdir), "there is no tokenizer.json"),
    "tokenizer settings are a folder": (in_place("tokenizer_config.json", Path.mkdir), "tokenizer_config.json: is no file"),
    "generation is a pipe": (in_place("generation_config.json", lambda p: os.mkfifo(p)), "generation_config.json: is no file"),
    "weights are a folder": (in_place("model.safetensors", Path.mkdir), "there is no model.safetensors"),
    "weights link to themselves": (in_place("model.safetensors", lambda p: p.symlink_to(p.name)), "there is no model.safetensors"),
    "weights link to nothing": (in_place("model.safetensors", lambda p: p.symlink_to("gone")), "there is no model.safetensors"),
}  # fmt: skip


def said(tmp_path: Path, m: Path) -> str:
    began = time.process_time()
    with pytest.raises(UserError) as raised:
        base.check(loaded(tmp_path, base=m, context=128))
    assert time.process_time() - began < 10
    message = str(raised.value)
    assert raised.value.exit_status == 2
    assert message.startswith(f"{tmp_path}/mine.yaml:4: model.base: {m}: ")
    assert "\n" not in message
    assert len(message) < 700
    return message.partition(f"{m}: ")[2]


@pytest.mark.parametrize("case", FILES)
def test_a_broken_file_is_one_sentence(tmp_path: Path, case: str) -> None:
    files, words = FILES[case]
    assert said(tmp_path, folder(tmp_path / "m", **files)).startswith(words)


@pytest.mark.parametrize("case", PLACES)
def test_so_is_what_stands_in_a_files_place(tmp_path: Path, case: str) -> None:
    change, words = PLACES[case]
    m = folder(tmp_path / "m")
    change(m)
    assert said(tmp_path, m).startswith(words)


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = folder(tmp_path / "m")

    def refused(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(base_files, "text_of", refused)  # root may read everything, and runs these tests
    assert said(tmp_path, m) == "config.json cannot be read: Permission denied"


def test_files_beyond_all_size_are_not_read(tmp_path: Path) -> None:
    for name, size in (("config.json", 30_000_000), ("tokenizer.json", 600_000_000)):
        m = folder(tmp_path / name)
        os.truncate(m / name, size)
        assert said(tmp_path, m).startswith(f"{name}: has more than")


def test_the_command_ends_with_status_2_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for case in (
        "config is deep",
        "index without weight_map",
        "vocab_size is text",
        "offsets are texts",
        "code of its own",
    ):
        m = folder(tmp_path / case.replace(" ", "-"), **FILES[case][0])
        made = loaded(tmp_path, base=m)
        assert made.file is not None
        for verb in ("plan", "status"):
            assert main([verb, str(made.file), "--runs", str(tmp_path / "runs")]) == 2, case
            err = capsys.readouterr().err
            assert "Traceback" not in err
            assert "model.base" in err


@pytest.mark.parametrize(
    "files",
    [
        fitting(tie_word_embeddings=False),
        fitting(attention_bias=True, mlp_bias=True),
        fitting(head_dim=6),
        fitting(
            num_key_value_heads=None,
            rope_scaling={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8},
        ),
        config(eos_token_id=[1, 2], pad_token_id=-1, torch_dtype="bfloat16", auto_map=None),
        vocabulary(type="Unigram", vocab=[["a", -1.5], ["b", 0]], merges=[]),
        vocabulary(merges=["a b", ["a", "b"]]),
        {"pytorch_model.bin": b"x", "training_args.bin": b"x", "consolidated.safetensors": b"x", "modeling_x.py": b"x"},
        {"tokenizer_config.json": {"eos_token": {"content": "b"}, "chat_template": None, "model_max_length": 1e30}},
        {"model.safetensors": safetensors({**WEIGHTS, "model.layers.0.self_attn.rotary_emb.inv_freq": (2,)})},
        {"model.safetensors": safetensors(WEIGHTS, "BF16", 2)},
        index(
            {"weight_map": {name: f"model-{len(name) % 2}.safetensors" for name in WEIGHTS}},
            **{
                f"model-{half}.safetensors": safetensors({n: s for n, s in WEIGHTS.items() if len(n) % 2 == half})
                for half in (0, 1)
            },
        ),
    ],
)  # fmt: skip
def test_whole_ones_pass_and_steps_see_nothing_but_what_is_read(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    m = folder(tmp_path / "m", **files)
    base.check(loaded(tmp_path, base=m, context=128))
    seen = base_files.view(m, tmp_path / "work" / "base")
    names = {path.name for path in seen.iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".py"))]
    assert "consolidated.safetensors" not in names
    assert names >= {"config.json", "tokenizer.json", *(path.name for path in base_files.weight_files(m))}
    assert (seen / "config.json").read_bytes() == (m / "config.json").read_bytes()
    assert base_files.view(m, seen) == seen  # a step that goes on makes it again


def test_links_within_the_folder_and_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    m = folder(tmp_path / "models--a--b" / "snapshots" / "0123")
    blobs = tmp_path / "models--a--b" / "blobs"
    blobs.mkdir()
    for file in sorted(m.iterdir()):
        file.rename(blobs / f"sha-{file.name}")
        file.symlink_to(f"../../blobs/sha-{file.name}")
    base.check(loaded(tmp_path, base=m, context=128))
    own = folder(tmp_path / "own")
    (own / "config.json").rename(own / "config-1.json")
    (own / "config.json").symlink_to("config-1.json")
    base.check(loaded(tmp_path, base=own, context=128))
