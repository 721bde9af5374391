"""What each target adds to the repository's text files: the weights in its form, and how they can be asked here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.serving.repository import CHECKPOINT
from pipeline.serving.targets import CPU_OPENVINO, PRECISIONS
from pipeline.stages.export.parity import AtWork
from pipeline.stages.export.reference import Reference
from pipeline.stages.step import InputError, Step


@dataclass
class Exported:
    """What was written, at work.

    ``engine`` renders the chat template as the server will, where the server's own engine runs here.
    ``figures`` go into parity.json beside the comparison, ``faults`` stop the export.
    """

    at_work: AtWork
    engine: Any = None
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


def write(step: Step, model: Any, tokenizer: Any, generation: dict[str, Any]) -> Exported:
    """Write the weights into ``output/repository``; ``model`` is the bundle's, fp32, and may be changed."""
    settings = step.section(schema.Export)
    if settings.target == CPU_OPENVINO:
        return _openvino(step, model, tokenizer)
    version = step.output / "repository" / settings.model_name / "1"
    exported = _checkpoint(step, model, tokenizer, generation, version / CHECKPOINT)
    _adapters(settings, version / "adapters")
    return exported


def _openvino(step: Step, model: Any, tokenizer: Any) -> Exported:
    from pipeline.stages.export import openvino

    settings = step.section(schema.Export)
    version = step.output / "repository" / settings.model_name / "1"
    openvino.convert(model, tokenizer, version / "openvino", settings.weights)
    # The defaults of requests, the same bytes as the bundle's.
    shutil.copyfile(
        step.output / "bundle" / "generation_config.json", version / "openvino" / "generation_config.json"
    )
    exported = openvino.Exported(version, kv_cache_gb=settings.kv_cache_gb, threads=step.threads)
    return Exported(exported, exported.engine, close=exported.close)


def _checkpoint(step: Step, model: Any, tokenizer: Any, generation: dict[str, Any], folder: Path) -> Exported:
    """A Hugging Face folder in bf16, or as Model Optimizer quantises it, and the model that its bytes mean."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.stages.export import quantise, quantised

    settings = step.section(schema.Export)
    half = model.to(torch.bfloat16)
    if not PRECISIONS[settings.weights].modelopt and settings.kv_cache == "auto":
        half.save_pretrained(folder)
        quantise.finish(tokenizer, folder, generation)
        back = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
        figures: dict[str, Any] = {}
    else:
        samples = quantise.calibration(step, tokenizer)
        done = quantise.quantise(half, settings.weights, settings.kv_cache, samples, step)
        said = quantise.write(done, tokenizer, folder, generation)
        del done
        back = quantised.load(folder)
        figures = {
            "quantisation": said["quantization"],
            "calibration": {"samples": len(samples), "tokens": sum(map(len, samples))},
        }
    ends = generation["eos_token_id"]
    return Exported(Reference(back, ends, generation["pad_token_id"]), figures=figures)


def _adapters(settings: schema.Export, folder: Path) -> None:
    """Copies of the adapters' folders, safetensors only."""
    for name, source in settings.adapters.items():
        path = Path(str(source))
        if not (path / "adapter_config.json").is_file() or not (path / "adapter_model.safetensors").is_file():
            raise InputError(
                f"export.adapters.{name}: {path} has no adapter_config.json and adapter_model.safetensors"
            )
        target = folder / name
        target.mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(path / file, target / file)
