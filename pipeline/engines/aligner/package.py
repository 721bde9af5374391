"""What NeMo-Aligner's own code reads, looked up in its installed package without importing it.

The package cannot be imported beside this toolchain's nemo-toolkit, but its source can be read: a key of our
configuration or data that no line of it reads would be passed over in silence on the cluster.
"""

from __future__ import annotations

import ast
from importlib.metadata import distribution, version
from pathlib import Path
from typing import Any

from pipeline.stages.step import InputError

# The part of a configuration, the files that read it, and under which names.
READERS = {
    "trainer.dpo": (("algorithms/dpo.py",), ("cfg",)),
    "model.dpo": (("models/nlp/gpt/megatron_gpt_dpo_model.py",), ("dpo",)),
    "model.data": (("data/nlp/builders.py", "data/nlp/datasets.py"), ("data",)),
    "model.peft": (("utils/train_script_utils.py",), ("peft",)),
}
# Read by the training script, which only the container has (examples/nlp/gpt/train_gpt_dpo.py),
# and by NeMo 1.x for the adapters.
READ_ELSEWHERE = {
    "model.data": {"data_impl", "data_prefix", "seq_length"},
    "model.peft": {"lora_tuning"},
}
DATA_READERS = (("data/nlp/datasets.py",), ("payload",))


def check_configuration(tree: dict[str, Any]) -> int:
    """Look up every key of the checked parts; returns how many.  Raises :class:`InputError` for one nobody reads."""
    count = 0
    for part, (files, holders) in READERS.items():
        section = tree
        for name in part.split("."):
            section = section[name]
        count += require_read(part, set(section) - READ_ELSEWHERE.get(part, set()), files, holders)
    return count


def check_data(keys: set[str]) -> int:
    """Look up the keys of a data line."""
    return require_read("a data line", keys, *DATA_READERS)


def require_read(what: str, keys: set[str], files: tuple[str, ...], holders: tuple[str, ...]) -> int:
    """Raise :class:`InputError` for a key that these files never take from something of these names."""
    read = set().union(*(keys_read(source_folder() / file, holders) for file in files))
    unknown = sorted(keys - read)
    if unknown:
        raise InputError(
            f"nemo-aligner {version('nemo-aligner')} reads no {', '.join(unknown)} of {what}; it reads {', '.join(sorted(read))}"
        )
    return len(keys)


def keys_read(file: Path, holders: tuple[str, ...]) -> set[str]:
    """The keys that a Python file takes from a name or attribute called one of ``holders``.

    ``cfg.dpo.beta``, ``cfg.dpo.get("beta")`` and ``cfg.dpo["beta"]`` all read ``beta`` from ``dpo``.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and _called(node.value) in holders:
            found.add(node.attr)
        elif isinstance(node, ast.Subscript) and _called(node.value) in holders:
            found.add(_text(node.slice))
        elif _is_get(node) and _called(node.func.value) in holders:  # type: ignore[attr-defined]
            found.add(_text(node.args[0]))  # type: ignore[attr-defined]
    return found - {"", "get"}


def source_folder() -> Path:
    """Where the package's source lies."""
    return Path(str(distribution("nemo-aligner").locate_file("nemo_aligner")))


def _is_get(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "get"
        and bool(node.args)
    )


def _called(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _text(node: ast.expr) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
