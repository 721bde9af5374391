"""The line that starts NeMo-Aligner's DPO in its container, with our values as Hydra overrides."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from pipeline import strict_json

SCRIPT = "/opt/NeMo-Aligner/examples/nlp/gpt/train_gpt_dpo.py"
FILE = "dpo.sh"
PLAIN = re.compile(
    r"(?!(?i:null|true|false|nan|inf)$)[A-Za-z_/][\w./-]*"
)  # what Hydra's grammar takes for a text without quotes


def command(tree: dict[str, Any]) -> list[str]:
    """The words of the launch line; on one machine the script starts a process for each GPU itself."""
    return ["python", "-u", SCRIPT, *overrides(tree)]


def overrides(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Hydra overrides that put each value of a tree in its place, whether the container's file has it or not."""
    found = []
    for name, value in tree.items():
        path = f"{prefix}.{name}" if prefix else name
        if isinstance(value, dict) and name != "data_prefix":
            found += overrides(value, path)
        else:
            found.append(f"++{path}={_value(value)}")
    return found


def write(tree: dict[str, Any], folder: Path) -> Path:
    """Write the configuration to read (``dpo.json``) and the launch line (``dpo.sh``); returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dpo.json").write_text(strict_json.dumps(tree, indent=2) + "\n", encoding="utf-8")
    script = folder / FILE
    words = " \\\n  ".join(shlex.quote(word) for word in command(tree))
    script.write_text(f"#!/bin/sh\nexec {words}\n", encoding="utf-8")
    script.chmod(0o755)
    return script


def _value(value: Any) -> str:
    """A value in Hydra's grammar for overrides."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_value, value)) + "]"
    if isinstance(value, str):
        if PLAIN.fullmatch(value):
            return value
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return repr(value)
