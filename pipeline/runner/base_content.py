"""What the files of a base model's folder say, held to what a Llama can be; :mod:`pipeline.runner.base` asks.

Every check raises :class:`pipeline.base_files.Broken` with the file, the key and what is wrong: what a library would make of
the same mistake is a traceback in the middle of a run, or weights that were drawn at random for those that are missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import base_files
from pipeline.base_files import Broken, Tensor

ARCHITECTURES = {"LlamaForCausalLM": "llama"}  # and the model_type that transformers builds it for
FLOATS = ("F64", "F32", "F16", "BF16")
PRECISIONS = ("float32", "float16", "bfloat16", "float64")
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
HIGHEST_ID = 1 << 31
# Weights that say nothing which the rest does not: tables of the rotary embedding in older files, and a tied output layer.
LEFT_ASIDE = re.compile(r"\.rotary_emb\.inv_freq$|^lm_head\.weight$")
# What each kind of rotary embedding must be given (transformers/modeling_rope_utils.py).
ROPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "longrope": ("short_factor", "long_factor"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def config(folder: Path) -> dict[str, Any]:
    """The configuration, of an architecture that can be trained, with numbers that can be one's."""
    said = base_files.json_object(folder / base_files.CONFIG)
    name = base_files.CONFIG
    kinds = said.get("architectures")
    if not isinstance(kinds, list) or not all(isinstance(kind, str) for kind in kinds):
        raise Broken(f"{name}: architectures = {_shown(kinds)} names no architecture")
    if not set(kinds) & set(ARCHITECTURES):
        raise Broken(
            f"{name}: is a {', '.join(kinds) or 'nameless model'}; what can be trained here is {', '.join(ARCHITECTURES)}"
        )
    for key, why in (
        (
            "auto_map",
            "names code of the model's own, which is never run; use a model whose code is transformers'",
        ),
        (
            "quantization_config",
            "says that the weights are quantised already; training needs the model as it was before",
        ),
    ):
        if said.get(key):
            raise Broken(f"{name}: {key} {why}")
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings"):
        _kind(name, said, key, bool, "true or false")
    for key in ("hidden_act", "model_type"):
        _kind(name, said, key, str, "a word")
    wanted = [ARCHITECTURES[kind] for kind in kinds if kind in ARCHITECTURES]
    if said.get("model_type", wanted[0]) not in wanted:
        raise Broken(
            f"{name}: model_type = {_shown(said['model_type'])} is not that of a {', '.join(kinds)}, {wanted[0]!r}"
        )
    for key, least, most in (
        ("rms_norm_eps", 1e-30, 1.0), ("rope_theta", 1.0, 1e12), ("attention_dropout", 0.0, 1.0), ("initializer_range", 0.0, 1e3),
    ):  # fmt: skip
        _number(name, said, key, least, most)
    for key in ("dtype", "torch_dtype"):
        if said.get(key) not in (None, *PRECISIONS):
            raise Broken(f"{name}: {key} = {_shown(said[key])} is not one of {', '.join(PRECISIONS)}")
    _rope(name, said)
    return said


def vocabulary(folder: Path, rows: int) -> None:
    """The tokenizer, and that the model has a row for each of its tokens."""
    name, said = base_files.TOKENIZER, base_files.json_object(folder / base_files.TOKENIZER)
    model = said.get("model")
    if not isinstance(model, dict):
        raise Broken(f"{name}: model = {_shown(model)} is no model of a tokenizer")
    if model.get("type", "BPE") not in MODELS:
        raise Broken(f"{name}: model.type = {_shown(model['type'])} is not one of {', '.join(MODELS)}")
    merges = model.get("merges", [])
    if not isinstance(merges, list) or not all(_merge(each) for each in merges):
        raise Broken(f"{name}: model.merges is not a list of pairs")
    ids = [*_vocabulary(name, model.get("vocab")), *_added(name, said.get("added_tokens"))]
    if not ids:
        raise Broken(f"{name}: has no tokens")
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        value = said.get(part)
        if value is not None and not (isinstance(value, dict) and isinstance(value.get("type"), str)):
            raise Broken(f"{name}: {part} = {_shown(value)} is not a part of a tokenizer with its type")
    if max(ids) >= rows:
        raise Broken(f"{name}: has {max(ids) + 1} tokens and the model room for {rows}")


def settings_of_tokenizer(folder: Path) -> None:
    """The files that say which tokens have a name, and how conversations are written; they may be missing."""
    for name in (base_files.TOKENIZER_CONFIG, "special_tokens_map.json"):
        if not (folder / name).exists():
            continue
        said = base_files.json_object(folder / name)
        for key in NAMED:
            value = said.get(key)
            if not (value is None or isinstance(value, str) or _token(value)):
                raise Broken(f"{name}: {key} = {_shown(value)} is no token")
        for key in ("tokenizer_class", "padding_side", "truncation_side"):
            _kind(name, said, key, str, "a word")
        for key in ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces"):
            _kind(name, said, key, bool, "true or false")
        _number(name, said, "model_max_length", 0, math.inf)
        extra = said.get("additional_special_tokens")
        if extra is not None and not (
            isinstance(extra, list) and all(isinstance(each, str) or _token(each) for each in extra)
        ):
            raise Broken(f"{name}: additional_special_tokens = {_shown(extra)} is no list of tokens")
        added = said.get("added_tokens_decoder")
        if added is not None and not (
            isinstance(added, dict) and all(key.isdigit() and _token(each) for key, each in added.items())
        ):
            raise Broken(f"{name}: added_tokens_decoder = {_shown(added)} is not a token for every id")
        template = said.get("chat_template")
        if not (template is None or isinstance(template, str) or _templates(template)):
            raise Broken(
                f"{name}: chat_template = {_shown(template)} is neither a template nor a list of named ones"
            )
    if (folder / base_files.TEMPLATE).exists():
        try:
            base_files.text_of(folder / base_files.TEMPLATE).decode("utf-8")
        except UnicodeDecodeError:
            raise Broken(f"{base_files.TEMPLATE}: is not UTF-8 text") from None


def generation(folder: Path, rows: int) -> None:
    """The model's own defaults of generation, which may be missing."""
    name = base_files.GENERATION
    for file in (base_files.CONFIG, name):
        if not (folder / file).exists():
            continue
        said = base_files.json_object(folder / file)
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = said.get(key)
            for token in value if isinstance(value, list) and key == "eos_token_id" else [value]:
                # -1 stands for none in older files (generation_defaults in stages/export/bundle.py).
                if token is not None and not (type(token) is int and -1 <= token < rows):
                    raise Broken(f"{file}: {key} = {_shown(value)} is no token of a model with {rows}")
    if not (folder / name).exists():
        return
    said = base_files.json_object(folder / name)
    for key, least, most in (
        ("temperature", 0.0, 1e6), ("top_p", 0.0, 1.0), ("min_p", 0.0, 1.0), ("top_k", 0, HIGHEST_ID), ("repetition_penalty", 0.01, 1e6),
        ("length_penalty", -1e6, 1e6), ("max_length", 0, HIGHEST_ID), ("max_new_tokens", 0, HIGHEST_ID), ("min_new_tokens", 0, HIGHEST_ID),
        ("no_repeat_ngram_size", 0, HIGHEST_ID), ("num_beams", 1, HIGHEST_ID),
    ):  # fmt: skip
        _number(name, said, key, least, most, whole=isinstance(least, int))
    _kind(name, said, "do_sample", bool, "true or false")


def weights(folder: Path, said: dict[str, Any]) -> None:
    """The weights: every file whole, and every tensor of the configured model there in its shape."""
    found: dict[str, Tensor] = {}
    files = base_files.weight_files(folder)
    for file in files:
        found |= base_files.tensors(file)
    if files != [folder / base_files.WEIGHTS]:
        for tensor, shard in base_files.weight_map(folder).items():
            if tensor not in found:
                raise Broken(f"{base_files.INDEX}: puts {tensor} into {shard}, which does not hold it")
    wanted = dict(expected(said))
    for name, shape in wanted.items():
        if name not in found:
            raise Broken(
                f"{files[0].name}: has no {name} of shape {list(shape)}, which {base_files.CONFIG} speaks of"
            )
        if found[name].shape != shape:
            raise Broken(
                f"{files[0].name}: {name} has shape {list(found[name].shape)}, and {base_files.CONFIG} speaks of {list(shape)}"
            )
        if found[name].dtype not in FLOATS:
            raise Broken(
                f"{files[0].name}: {name} is held in {found[name].dtype}; training needs {', '.join(FLOATS)}"
            )
    beyond = [name for name in found if name not in wanted and not LEFT_ASIDE.search(name)]
    if beyond:
        raise Broken(
            f"{files[0].name}: holds {', '.join(sorted(beyond)[:3])}{' and more' if len(beyond) > 3 else ''}, which "
            f"{base_files.CONFIG} does not speak of: they would be left out of the model"
        )


def expected(said: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of a Llama of this configuration (``transformers/models/llama/modeling_llama.py``)."""
    width, inner, rows = said["hidden_size"], said["intermediate_size"], said["vocab_size"]
    heads = said["num_attention_heads"]
    size = said.get("head_dim") or width // heads
    wide, narrow = heads * size, (said.get("num_key_value_heads") or heads) * size
    attention = {
        "q_proj": (wide, width),
        "k_proj": (narrow, width),
        "v_proj": (narrow, width),
        "o_proj": (width, wide),
    }
    forward = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    yield "model.embed_tokens.weight", (rows, width)
    for layer in range(said["num_hidden_layers"]):
        for part, linears, bias in (("self_attn", attention, "attention_bias"), ("mlp", forward, "mlp_bias")):
            for name, shape in linears.items():
                yield f"model.layers.{layer}.{part}.{name}.weight", shape
                if said.get(bias):
                    yield f"model.layers.{layer}.{part}.{name}.bias", shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (width,)
    yield "model.norm.weight", (width,)
    if not said.get("tie_word_embeddings"):
        yield "lm_head.weight", (rows, width)


def _rope(name: str, said: dict[str, Any]) -> None:
    for key in ("rope_scaling", "rope_parameters"):
        value = said.get(key)
        if value is None:
            continue
        if not isinstance(value, dict):
            raise Broken(f"{name}: {key} = {_shown(value)} is no set of parameters")
        where = f"{name}: {key}"
        for part in ("rope_type", "type"):  # its older name
            _kind(where, value, part, str, "a word")
        for part, least, most in (
            ("rope_theta", 1.0, 1e12), ("factor", 1.0, 1e6), ("low_freq_factor", 1e-6, 1e6), ("high_freq_factor", 1e-6, 1e6),
        ):  # fmt: skip
            _number(where, value, part, least, most)
        _number(where, value, "original_max_position_embeddings", 1, HIGHEST_ID, whole=True)
        kind = value.get("rope_type", value.get("type", "default"))
        if kind not in ROPES:
            raise Broken(f"{where}: rope_type = {_shown(kind)} is not one of {', '.join(ROPES)}")
        missing = [part for part in ROPES[kind] if value.get(part) is None]
        if missing:
            raise Broken(f"{where}: rope_type {kind} needs {' and '.join(missing)}")


def _vocabulary(name: str, found: Any) -> list[int]:
    """The ids of a vocabulary: each token's, or its place in a list of (token, score) pairs (Unigram)."""
    if isinstance(found, dict):
        for token, place in found.items():
            if not (type(place) is int and 0 <= place < HIGHEST_ID):
                raise Broken(f"{name}: model.vocab has {_shown(place)} for the id of {_shown(token)}")
        return list(found.values())
    if isinstance(found, list) and all(
        isinstance(each, list)
        and len(each) == 2
        and isinstance(each[0], str)
        and isinstance(each[1], int | float)
        for each in found
    ):
        return list(range(len(found)))
    raise Broken(f"{name}: model.vocab = {_shown(found)} is no vocabulary")


def _added(name: str, found: Any) -> list[int]:
    if found is None:
        return []
    if not isinstance(found, list):
        raise Broken(f"{name}: added_tokens = {_shown(found)} is no list")
    for token in found:
        if not (_token(token) and type(token.get("id")) is int and 0 <= token["id"] < HIGHEST_ID):
            raise Broken(f"{name}: added_tokens has {_shown(token)}, which is no token with its id")
    return [token["id"] for token in found]


def _token(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("content"), str)


def _templates(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(each, dict) and isinstance(each.get("name"), str) and isinstance(each.get("template"), str)
        for each in value
    )


def _merge(value: Any) -> bool:
    if isinstance(value, str):
        return True
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def _kind(name: str, said: dict[str, Any], key: str, kind: type, words: str) -> None:
    value = said.get(key)
    if value is not None and not isinstance(value, kind):
        raise Broken(f"{name}: {key} = {_shown(value)} is not {words}")


def _number(
    name: str, said: dict[str, Any], key: str, least: float, most: float, whole: bool = False
) -> None:
    value = said.get(key)
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise Broken(f"{name}: {key} = {_shown(value)} is not a {'whole ' if whole else ''}number")
    if not least <= value <= most:
        raise Broken(
            f"{name}: {key} = {_shown(value)} is out of range; it must be from {least:g} to {most:g}"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
