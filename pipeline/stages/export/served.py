"""The code of an exported repository, run here as the server runs it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

LOADED = ("engine", "answers", "conversations", "parameters", "pieces", "prompts", "sampling", "text_stream")


def served_module(folder: Path, name: str) -> ModuleType:
    """A module of the exported model, imported from the repository as the server does."""
    written = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # the repository is published as it is
    sys.path.insert(0, str(folder))
    try:
        for loaded in [name for name in sys.modules if name.split(".")[0] in LOADED]:
            del sys.modules[loaded]
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = written
