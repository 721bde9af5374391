"""The files of a base model's folder, read before anything rests on them: each fault is one sentence about one file.

A folder comes from anywhere, so nothing in it is believed: not the types in its JSON, not the lengths in its
weights, not the names in its index.  Only safetensors are read, under the names that Hugging Face's loaders read.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import strict_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
JSON_BYTES = 256 << 20  # the largest tokenizers have 35 MB
HEADER_BYTES = 100_000_000  # as the safetensors library has it
LARGEST = 2**31
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
COUNTS = (
    "vocab_size", "max_position_embeddings", "num_hidden_layers", "hidden_size", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
NUMBERS = ("rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout")
SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "typical_p", "repetition_penalty", "max_new_tokens", "max_length",
)  # fmt: skip
SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


class Fault(Exception):
    """What is wrong with a file, as the end of a sentence that begins with the folder's place in the recipe."""


def read(path: Path) -> dict[str, Any]:
    """A JSON object out of a file.  Raises :class:`Fault`."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise Fault(f"{path} has more than {JSON_BYTES >> 20} MB, which no such file has")
        found = strict_json.loads(path.read_bytes())
    except RecursionError:
        raise Fault(f"{path} is nested too deeply to be read") from None
    except ValueError as error:
        raise Fault(f"{path} is not JSON: {str(error)[:200]}") from None
    except OSError as error:
        raise Fault(f"{path} cannot be read: {error.strerror}") from None
    if not isinstance(found, dict):
        raise Fault(f"{path} holds a {type(found).__name__}, not an object")
    return found


def config(base: Path) -> dict[str, Any]:
    """``config.json``, its shape's numbers being numbers that a model can have."""
    path = base / "config.json"
    found = read(path)
    kinds = found.get("architectures")
    if kinds is not None and not (isinstance(kinds, list) and all(isinstance(kind, str) for kind in kinds)):
        raise Fault(f"{path}: architectures is {_shown(kinds)}, not a list of names")
    for name in COUNTS:
        value = found.get(name)
        if value is not None and not (_whole_number(value) and 0 < value < LARGEST):
            raise Fault(f"{path}: {name} is {_shown(value)}, not a number of that")
    for name in NUMBERS:
        value = found.get(name)
        if value is not None and not _finite(value):
            raise Fault(f"{path}: {name} is {_shown(value)}, not a number")
    tied = found.get("tie_word_embeddings")
    if tied is not None and not isinstance(tied, bool):
        raise Fault(f"{path}: tie_word_embeddings is {_shown(tied)}, neither true nor false")
    for name in ("rope_scaling", "rope_parameters"):
        if not isinstance(found.get(name, {}), dict | None):
            raise Fault(f"{path}: {name} is {_shown(found[name])}, not an object")
    _ends(path, found)
    return found


def tokenizer_size(base: Path) -> int:
    """One more than the highest id that the folder's fast tokenizer can give; its other files are looked at, too."""
    path = base / "tokenizer.json"
    found = read(path)
    model = found.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    added = found.get("added_tokens") or []
    if not isinstance(vocabulary, dict | list) or not vocabulary:
        raise Fault(f"{path} has no vocabulary, so it is no Hugging Face fast tokenizer")
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary)))
    if not isinstance(added, list) or not all(isinstance(each, dict) for each in added):
        raise Fault(f"{path}: added_tokens is not a list of tokens")
    ids += [each.get("id") for each in added]
    if not all(_whole_number(each) and 0 <= each < LARGEST for each in ids):
        raise Fault(f"{path}: a token's id is no number")
    if not all(isinstance(each.get("content"), str) for each in added):
        raise Fault(f"{path}: an added token has no content")
    _tokenizer_config(base / "tokenizer_config.json")
    special = base / "special_tokens_map.json"
    if special.exists():
        read(special)
    return max(ids) + 1


def generation(base: Path) -> None:
    """``generation_config.json``, where there is one: it is served as it stands."""
    path = base / "generation_config.json"
    if not path.exists():
        return
    found = read(path)
    _ends(path, found)
    for name in SAMPLING:
        if not _finite(found.get(name, 0)) and found[name] is not None:
            raise Fault(f"{path}: {name} is {_shown(found[name])}, not a number")
    if not isinstance(found.get("do_sample", False), bool):
        raise Fault(f"{path}: do_sample is {_shown(found['do_sample'])}, neither true nor false")


def weights(base: Path) -> dict[str, list[int]]:
    """The shape of every tensor, by its name.  Raises :class:`Fault` unless all files are there and whole."""
    index = base / INDEX
    if index.exists():
        return _indexed(base, index)
    single = base / SINGLE
    if not single.exists():
        others = sorted(p.name for p in base.glob("*.safetensors"))
        pickled = sorted(p.name for end in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in base.glob(end))
        hint = f"; {', '.join(others[:3])} is under no name that is read" if others else ""
        hint += f" ({', '.join(pickled[:3])} is a pickle and is not read)" if pickled else ""
        raise Fault(f"{base} has no weights: no {SINGLE} and no {INDEX}{hint}")
    return _shapes(single)


def llama_faults(found: dict[str, Any], shapes: dict[str, list[int]]) -> Iterator[str]:
    """What of a Llama's tensors is missing or has another shape than ``config.json`` says.

    What is missing would be filled with random numbers in silence.
    """
    sizes = [found.get(name) for name in ("num_hidden_layers", "hidden_size", "vocab_size")]
    if not all(sizes):
        return
    layers, hidden, vocabulary = (int(size or 0) for size in sizes)
    wanted: dict[str, list[int] | None] = {
        "model.embed_tokens.weight": [vocabulary, hidden],
        "model.norm.weight": [hidden],
    }
    if not found.get("tie_word_embeddings", False):
        wanted["lm_head.weight"] = [vocabulary, hidden]
    inner = found.get("intermediate_size")
    for layer in range(layers):
        for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"):
            wanted[f"model.layers.{layer}.{name}.weight"] = None
        for name in ("gate_proj", "up_proj"):
            wanted[f"model.layers.{layer}.mlp.{name}.weight"] = [inner, hidden] if inner else None
        wanted[f"model.layers.{layer}.mlp.down_proj.weight"] = [hidden, inner] if inner else None
        for name in ("input_layernorm", "post_attention_layernorm"):
            wanted[f"model.layers.{layer}.{name}.weight"] = [hidden]
    for name, shape in wanted.items():
        if name not in shapes:
            yield f"there is no {name}, which config.json asks for"
        elif shape is not None and shapes[name] != shape:
            yield f"{name} is {shapes[name]}, and config.json makes it {shape}"


def _indexed(base: Path, index: Path) -> dict[str, list[int]]:
    places = read(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise Fault(f"{index} has no weight_map, which says where each tensor lies")
    names = set(places.values())
    if not all(isinstance(name, str) for name in names):
        raise Fault(f"{index}: weight_map names something that is no file")
    strange = sorted(name for name in names if Path(name).name != name or not name.endswith(".safetensors"))
    if strange:
        raise Fault(f"{index}: weight_map names {strange[0]!r}, which is no *.safetensors file of the folder")
    missing = sorted(name for name in names if not (base / name).is_file())
    if missing:
        raise Fault(f"{base} is not complete: {', '.join(missing)} missing")
    shapes: dict[str, list[int]] = {}
    for name in sorted(names):
        held = _shapes(base / name)
        absent = sorted(tensor for tensor, place in places.items() if place == name and tensor not in held)
        if absent:
            raise Fault(f"{base / name} has no {absent[0]}, which {INDEX} places there")
        shapes |= held
    return shapes


def _shapes(file: Path) -> dict[str, list[int]]:
    """The tensors of a safetensors file: 8 bytes of length, JSON of that length, and the data without gaps."""
    cut = f"{file} is cut off or no safetensors file; fetch or copy it again"
    try:
        size = file.stat().st_size
        with open(file, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if not 2 <= length <= min(size - 8, HEADER_BYTES):
                raise Fault(cut)
            header = json.loads(handle.read(length))
    except OSError as error:
        raise Fault(f"{file} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Fault(cut) from None
    if not isinstance(header, dict):
        raise Fault(cut)
    header.pop("__metadata__", None)
    spans = []
    for name, entry in header.items():
        if not isinstance(entry, dict) or not _is_tensor(entry):
            raise Fault(f"{file}: what its header says of {name[:80]} is no tensor")
        spans.append(tuple(entry["data_offsets"]))
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise Fault(f"{file}: the tensors in it overlap, or leave gaps")
        end = stop
    if size != 8 + length + end:
        raise Fault(cut)
    return {name: entry["shape"] for name, entry in header.items()}


def _is_tensor(entry: dict[str, Any]) -> bool:
    shape, offsets, bits = entry.get("shape"), entry.get("data_offsets"), BITS.get(str(entry.get("dtype")))
    if bits is None or not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    if not all(_whole_number(each) and each >= 0 for each in [*shape, *offsets]):
        return False
    start, stop = offsets
    return bool((stop - start) * 8 == math.prod(shape) * bits)


def _tokenizer_config(path: Path) -> None:
    if not path.exists():
        return
    found = read(path)
    for name in SPECIAL:
        token = found.get(name)
        spelled = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(spelled, str):
            raise Fault(f"{path}: {name} is {_shown(token)}, not a token")
    longest = found.get("model_max_length")
    # transformers writes 10**30 for "no limit".
    if longest is not None and (isinstance(longest, bool) or not isinstance(longest, int | float)):
        raise Fault(f"{path}: model_max_length is {_shown(longest)}, not a number")
    if not isinstance(found.get("chat_template"), str | list | None):
        raise Fault(f"{path}: chat_template is {_shown(found['chat_template'])}, neither a text nor a list")


def _ends(path: Path, found: dict[str, Any]) -> None:
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = found.get(name)
        ids = value if isinstance(value, list) and name == "eos_token_id" else [value]
        if not all(each is None or (_whole_number(each) and -1 <= each < LARGEST) for each in ids):
            raise Fault(f"{path}: {name} is {_shown(value)}, not a token's id")


def _whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shown(value: object) -> str:
    return repr(value)[:60]
