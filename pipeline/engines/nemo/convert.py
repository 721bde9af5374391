"""Hugging Face folders to NeMo 2 checkpoints and back, by NeMo's own connectors.

    python -m pipeline.engines.nemo.convert to-nemo FOLDER CHECKPOINT      in the nemo toolchain
    python -m pipeline.engines.nemo.convert to-hf CHECKPOINT FOLDER

``llm.import_ckpt`` and ``llm.export_ckpt`` on one process; on a CPU too (:mod:`.cpu`).  Of what a Hugging Face
``config.json`` says, NeMo's configuration carries a part; :func:`require_carried` refuses a model whose other settings
it would lose.  Memory: about three times the weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline.engines.nemo.cpu import without_cuda
from pipeline.stages.step import InputError

# Llama 3.1's rotary scaling as NeMo's Llama31Config has it; only the factor is read from config.json.
LLAMA31_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WEIGHTS = "weights/metadata.json"  # NeMo writes it last


def to_nemo(folder: Path, checkpoint: Path) -> None:
    """Write the model of a Hugging Face folder (with tokenizer) as a NeMo 2 checkpoint folder."""
    from nemo.collections import llm

    require_carried(folder)
    shutil.rmtree(checkpoint, ignore_errors=True)
    with without_cuda(), alone():
        model = llm.LlamaModel(shape(folder))
        llm.import_ckpt(model, f"hf://{folder.resolve()}", output_path=checkpoint.resolve())


def to_hf(checkpoint: Path, folder: Path) -> None:
    """Write the model of a NeMo 2 checkpoint folder as a Hugging Face folder."""
    _export(checkpoint, folder, "hf")


def to_peft(checkpoint: Path, folder: Path) -> None:
    """Write the adapter of a NeMo 2 checkpoint folder as a PEFT folder."""
    _export(checkpoint, folder, "hf-peft")


def _export(checkpoint: Path, folder: Path, form: str) -> None:
    from nemo.collections import llm

    if not (checkpoint / WEIGHTS).is_file():
        raise InputError(f"{checkpoint} is no whole NeMo 2 checkpoint: {WEIGHTS} is missing")
    shutil.rmtree(folder, ignore_errors=True)
    with without_cuda(), alone():
        llm.export_ckpt(checkpoint.resolve(), form, output_path=folder.resolve())


def shape(folder: Path) -> Any:
    """The ``LlamaConfig`` that NeMo's importer reads off a Hugging Face folder."""
    from nemo.collections.llm.gpt.model.llama import HFLlamaImporter

    with without_cuda():
        return HFLlamaImporter(str(folder.resolve())).config


def require_carried(folder: Path) -> None:
    """Raise :class:`InputError` when NeMo's configuration cannot say what ``config.json`` does."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    faults = []
    if config.get("model_type") != "llama":
        faults.append(f"it is a {config.get('model_type')!r}, and this engine knows llama")
    for name in ("attention_bias", "mlp_bias"):
        if config.get(name):
            faults.append(f"{name} is set")
    if "rope_theta" not in config:
        faults.append("rope_theta is missing: NeMo would take 10000, and cannot read rope_parameters")
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "llama3"):
        faults.append(f"its rotary scaling is {kind!r}; NeMo has llama3's")
    if kind == "llama3":
        for name, value in LLAMA31_ROPE.items():
            if scaling.get(name, value) != value:
                faults.append(f"rope_scaling.{name} is {scaling[name]}; NeMo has {value}")
    if faults:
        raise InputError(f"{folder}/config.json cannot be carried over to NeMo: {'; '.join(faults)}")


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within this, NeMo sees one process: no torchrun or Slurm around it, and no port of another's."""
    around = ("MASTER_", "SLURM_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "GROUP_RANK", "NODE_RANK")
    with mock.patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith(around)]:
            del os.environ[name]
        yield


def main(arguments: list[str]) -> int:
    """The command line of the module's docstring; exit status 2 for a user's mistake."""
    actions = {"to-nemo": to_nemo, "to-hf": to_hf}
    if len(arguments) != 3 or arguments[0] not in actions:
        print(__doc__.split("\n\n")[1], file=sys.stderr)
        return 2
    try:
        actions[arguments[0]](Path(arguments[1]), Path(arguments[2]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
