"""Post-training quantisation by NVIDIA Model Optimizer, with the curated data as calibration set.

Model Optimizer looks at the inputs of every linear layer while the model reads calibration texts, and fixes scales
by them; nothing is trained.  It runs on a GPU where there is one, and on a CPU for models that fit there
(all formats below, nvfp4 among them, whose arithmetic only GPUs have but whose calibration needs none of it).
What is written is Hugging Face's layout with ``hf_quant_config.json``, which TensorRT-LLM and vLLM read.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.serving.targets import PRECISIONS, width_fault
from pipeline.stages.data_sets import documents
from pipeline.stages.step import InputError, Step, read_jsonl


def calibration(step: Step, tokenizer: Any) -> list[list[int]]:
    """Token ids of training conversations as the served model will see them, then of training documents.

    At most ``export.calibration_samples``, each at most ``export.calibration_tokens``; in the order of the data,
    which curation has shuffled.  Raises :class:`InputError` where there is no text at all.
    """
    settings = step.section(schema.Export)
    found: list[list[int]] = []
    for ids in _texts(step, tokenizer):
        found.append(ids[: settings.calibration_tokens])
        step.progress(len(found), settings.calibration_samples, "samples", "calibration set", every_s=5.0)
        if len(found) == settings.calibration_samples:
            break
    if not found:
        raise InputError("curation has no training text to calibrate on")
    return found


def _texts(step: Step, tokenizer: Any) -> Iterator[list[int]]:
    data, ours = step.inputs["data"], chat_tokenizer(tokenizer)
    for record in read_jsonl(data / "sft" / "train.jsonl"):
        yield [token for run in ours.runs(record["messages"], generation=False) for token in run]
    for record in documents(data, "train"):
        ids = ours.text(record["text"])
        if ids:
            yield ids


def quantise(model: Any, weights: str, kv_cache: str, samples: list[list[int]], step: Step) -> Any:
    """Give the model Model Optimizer's quantisers, in place, and calibrate them.

    ``kv_cache`` is ``fp8`` or ``auto`` (as the weights' arithmetic).  Raises :class:`InputError` for a
    model whose widths the format cannot group.
    """
    import modelopt.torch.quantization as mtq
    import torch

    widths = {name: int(getattr(model.config, name)) for name in ("hidden_size", "intermediate_size")}
    fault = width_fault(weights, widths)
    if fault:
        raise InputError(f"export.weights: {fault}")
    name = PRECISIONS[weights].modelopt
    configuration = copy.deepcopy(getattr(mtq, name))
    if kv_cache == "fp8":
        configuration = mtq.update_quant_cfg_with_kv_cache_quant(configuration, mtq.FP8_KV_CFG["quant_cfg"])

    def read(quantised: Any) -> None:
        for done, ids in enumerate(samples, start=1):
            quantised(torch.tensor([ids], device=quantised.device))
            step.progress(done, len(samples), "samples", "calibration", every_s=5.0)

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return mtq.quantize(model, configuration, read)
        except (ValueError, AssertionError) as error:
            raise InputError(
                f"export.weights: Model Optimizer cannot make {weights} of this model: {error}"
            ) from error


def write(model: Any, tokenizer: Any, folder: Path, generation: dict[str, Any]) -> dict[str, Any]:
    """Write the checkpoint, tokenizer and generation defaults; returns what ``hf_quant_config.json`` says."""
    import torch
    from modelopt.torch.export import export_hf_checkpoint

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        export_hf_checkpoint(model, dtype=torch.bfloat16, export_dir=folder)
    finish(tokenizer, folder, generation)
    said: dict[str, Any] = json.loads((folder / "hf_quant_config.json").read_text(encoding="utf-8"))
    return said


def finish(tokenizer: Any, folder: Path, generation: dict[str, Any]) -> None:
    """The files beside the weights, the same bytes as the bundle's."""
    from pipeline.stages.step import write_json

    tokenizer.save_pretrained(folder)
    write_json(folder / "generation_config.json", generation)
