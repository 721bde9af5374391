"""Where a setting stands in a YAML file: dotted path to line number.

OmegaConf reads the values; this reads the same text once more with PyYAML's composer,
only for the line of every key, so that an error can name the place to mend.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import UserError


def key_lines(path: Path) -> dict[str, int]:
    """Line number (from 1) of every key and list item, by dotted path (``a.b``, ``a.0.b``).

    Raises ``yaml.YAMLError`` where the file is not YAML.
    """
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    lines: dict[str, int] = {}
    if root is not None:
        _walk(root, "", lines)
    return lines


def table(path: Path) -> tuple[Any, dict[str, int]]:
    """A table that a user keeps: its content, and where each key stands.  Raises :class:`UserError` with file and line."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8")), key_lines(path)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: this is not YAML: {error.problem or error.context}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None


def _walk(node: yaml.Node, prefix: str, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            path = f"{prefix}.{key.value}" if prefix else str(key.value)
            lines[path] = key.start_mark.line + 1
            _walk(value, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            path = f"{prefix}.{index}"
            lines[path] = item.start_mark.line + 1
            _walk(item, path, lines)
