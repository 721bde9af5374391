"""A Llama in Hugging Face's format as a GGUF file: ``python -m benchmarks.servers.gguf_model FOLDER FILE``.

For llama.cpp's server.  Its own converter knows tokenizers by a list of fingerprints, in which one that was trained
by a recipe is not.  All weights stay fp32, as ours are.  llama.cpp rotates neighbouring dimensions of a head where Hugging Face rotates the
two halves of it, so the rows of the query and key projections change places.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy
from gguf import MODEL_ARCH, GGUFWriter, LlamaFileType, TokenType, get_tensor_name_map
from safetensors.numpy import load_file

ARCHITECTURE = "LlamaForCausalLM"
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def convert(folder: Path, output: Path) -> None:
    """Write the model.  Raises ``ValueError`` for a model or tokenizer that this cannot carry over."""
    config = _json(folder / "config.json")
    tokenizer = _json(folder / "tokenizer.json")
    if (
        config["architectures"] != [ARCHITECTURE]
        or config.get("rope_scaling")
        or config.get("attention_bias")
    ):
        raise ValueError(f"{folder} is no plain {ARCHITECTURE}")
    if (
        tokenizer["model"]["type"] != "BPE"
        or tokenizer["pre_tokenizer"] != PRE_TOKENIZER
        or tokenizer["normalizer"]
    ):
        raise ValueError(f"the tokenizer of {folder} is no byte-level BPE as GPT-2's")
    writer = GGUFWriter(output, "llama")
    _shape(writer, config)
    _words(writer, folder, tokenizer)
    _weights(writer, folder, config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _shape(writer: GGUFWriter, config: dict[str, Any]) -> None:
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_vocab_size(config["vocab_size"])


def _words(writer: GGUFWriter, folder: Path, tokenizer: dict[str, Any]) -> None:
    """The vocabulary; the end of an answer is the tokenizer's end token (llama.cpp knows the others by name)."""
    ids = tokenizer["model"]["vocab"] | {added["content"]: added["id"] for added in tokenizer["added_tokens"]}
    words = sorted(ids, key=lambda word: ids[word])
    special = {added["content"] for added in tokenizer["added_tokens"] if added["special"]}
    merges = tokenizer["model"]["merges"]
    settings = _json(folder / "tokenizer_config.json")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([TokenType.CONTROL if word in special else TokenType.NORMAL for word in words])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_bos_token_id(ids[settings["bos_token"]])
    writer.add_eos_token_id(ids[settings["eos_token"]])
    writer.add_pad_token_id(ids[settings["pad_token"]])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))


def _weights(writer: GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        stem, _, kind = name.rpartition(".")
        layer = stem.rpartition(".")[2]
        if layer in heads:
            rows, columns = weight.shape
            weight = weight.reshape(heads[layer], 2, -1, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", numpy.ascontiguousarray(weight, numpy.float32))


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
