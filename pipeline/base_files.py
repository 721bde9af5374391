"""The files of a Hugging Face model's folder, as far as this project reads them: which they are, and whether they are whole.

Weights are safetensors under the names that transformers gives them, ``model.safetensors`` or the shards that
``model.safetensors.index.json`` names.  Whatever else lies in the folder (pickles, code, another program's weights, adapters)
is never opened: steps are given :func:`view`, a folder that holds nothing else.  Standard library only.

The format of safetensors: https://github.com/huggingface/safetensors#format.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.strict_json import DEEPEST, deeper

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
TEXTS = (
    CONFIG,
    GENERATION,
    TOKENIZER,
    TOKENIZER_CONFIG,
    TEMPLATE,
    "special_tokens_map.json",
    "added_tokens.json",
)
LARGEST_TEXT = {
    TOKENIZER: 500_000_000,
    INDEX: 200_000_000,
}  # bytes; the largest published tokenizers have 35 MB
LARGEST_OTHER = 20_000_000
LARGEST_HEADER = 100_000_000  # bytes, as the safetensors library has it
DTYPES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8,
}  # fmt: skip  # bytes of a value


class Broken(ValueError):
    """A file is not what it has to be; the text begins with the file's name."""


@dataclass(frozen=True)
class Tensor:
    """What a safetensors file says of one tensor."""

    dtype: str
    shape: tuple[int, ...]


def weight_files(folder: Path) -> list[Path]:
    """The files that a model's weights are in, each there.  Raises :class:`Broken`."""
    whole, index = folder / WEIGHTS, folder / INDEX
    if whole.is_file() and not index.is_file():
        return [whole]
    if not index.is_file():
        beside = sorted(
            path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth")
        )
        hint = f"; {', '.join(beside[:5])} {'is' if len(beside) == 1 else 'are'} not read" if beside else ""
        raise Broken(f"there is no {WEIGHTS} and no {INDEX}: the folder has no weights in safetensors{hint}")
    shards = weight_map(folder)
    missing = sorted({shard for shard in shards.values() if not (folder / shard).is_file()})
    if missing:
        raise Broken(
            f"{INDEX}: names {', '.join(missing[:5])}, which {'is' if len(missing) == 1 else 'are'} missing"
        )
    # Where there are both, transformers reads the one file, and AutoModel the shards.
    return [whole] if whole.is_file() else [folder / shard for shard in sorted(set(shards.values()))]


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor to shard, as the folder's index has it.  Raises :class:`Broken`."""
    found = json_object(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise Broken(f"{INDEX}: weight_map is {_shown(found)}, not the shard of every tensor")
    for shard in found.values():
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise Broken(
                f"{INDEX}: weight_map names {_shown(shard)}, which is no safetensors file of this folder"
            )
    return found


def tensors(file: Path) -> dict[str, Tensor]:
    """What a safetensors file holds, by name; every byte of it is accounted for.  Raises :class:`Broken`."""
    size = file.stat().st_size
    with open(file, "rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        if size < 8 or length > size - 8:
            raise Broken(f"{file.name}: is cut off or no safetensors file; fetch or copy it again")
        if length > LARGEST_HEADER:
            raise Broken(f"{file.name}: its header has {length:,} bytes; no safetensors file's has so many")
        text = handle.read(length)
    header = _parsed(text, f"{file.name}: its header")
    found, spans = {}, []
    for name, entry in header.items():
        if name == "__metadata__":
            if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
                raise Broken(f"{file.name}: __metadata__ in its header is not texts by name")
            continue
        tensor, span = _tensor(file.name, name, entry)
        found[name] = tensor
        spans.append(span)
    end = 0
    for begin, after in sorted(spans):
        if begin != end:
            raise Broken(
                f"{file.name}: its tensors {'overlap' if begin < end else 'leave a gap'} at byte {min(begin, end):,}"
            )
        end = after
    if size != 8 + length + end:
        raise Broken(
            f"{file.name}: is cut off: it has {size:,} bytes and its header speaks of {8 + length + end:,}; fetch or copy it again"
        )
    return found


def _tensor(file: str, name: str, entry: Any) -> tuple[Tensor, tuple[int, int]]:
    said = f"{file}: its header has {_shown(entry)} for {_shown(name)}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Broken(f"{said}, not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Broken(f"{said}: {_shown(dtype)} is no type of numbers")
    if not (_counts(shape) and _counts(offsets) and len(offsets) == 2):
        raise Broken(f"{said}: shape and data_offsets are lists of whole numbers of at least 0")
    if offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype]:
        raise Broken(f"{said}: {offsets[1] - offsets[0]} bytes do not hold that shape")
    return Tensor(dtype, tuple(shape)), (offsets[0], offsets[1])


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file that others wrote.  Raises :class:`Broken`, or ``OSError``."""
    return _parsed(text_of(path), path.name)


def text_of(path: Path) -> bytes:
    """The bytes of a text file.  Raises :class:`Broken` for one that is too large, or no file."""
    if not path.is_file():
        raise Broken(f"{path.name}: is no file")
    most = LARGEST_TEXT.get(path.name, LARGEST_OTHER)
    with open(path, "rb") as handle:
        found = handle.read(most + 1)
    if len(found) > most:
        raise Broken(f"{path.name}: has more than {most:,} bytes, which no such file has")
    return found


def _parsed(text: bytes, what: str) -> dict[str, Any]:
    try:
        found = json.loads(
            text.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number, parse_float=_finite
        )
    except UnicodeDecodeError:
        raise Broken(f"{what}: is not UTF-8 text") from None
    except RecursionError:
        raise Broken(f"{what}: is nested too deep") from None
    except ValueError as error:
        raise Broken(f"{what}: is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Broken(f"{what}: is {_shown(found)}, not a JSON object")
    if deeper(found, DEEPEST):
        raise Broken(f"{what}: is nested more than {DEEPEST} levels deep")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_shown(twice)} is there twice")
    return found


def _no_number(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")  # and could not be written again beside what is trained


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is beyond every number")
    return number


def leading_out(folder: Path) -> Iterator[tuple[Path, Path]]:
    """The links among a model's files that lead out of its folder, with where to; the hub's cache is one folder."""
    for path in sorted(folder.iterdir()):
        if (path.name in TEXTS or path.suffix in (".safetensors", ".json")) and leads_out(path):
            yield path, path.resolve()


def leads_out(path: Path) -> bool:
    """Whether a file of a model's folder is a link to one that is no part of the model."""
    if not path.is_symlink() or not path.exists():
        return False
    home = path.parent.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":  # models--ORG--NAME/snapshots/COMMIT/FILE -> ../../blobs/DIGEST
        allowed.append(home.parent.parent / "blobs")
    return not any(path.resolve().is_relative_to(each) for each in allowed)


def view(folder: Path, place: Path) -> Path:
    """At ``place``, a folder with links to the files that are read of a model's, and nothing else; made anew each time.

    Libraries look for weights in more formats than one: AutoModel 0.7 reads any ``*.bin`` that lies there, transformers an
    adapter's ``adapter_config.json``.
    """
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    files = weight_files(folder)
    if files != [folder / WEIGHTS]:
        files.append(folder / INDEX)
    for file in [*files, *(folder / name for name in TEXTS if (folder / name).is_file())]:
        (place / file.name).symlink_to(file.absolute())
    return place


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 1 << 63 for each in value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
