"""What each target adds to the repository's text files: the weights in its form, and how they can be asked here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.serving.repository import CHECKPOINT, checkpoint_place
from pipeline.serving.targets import CPU_OPENVINO, PRECISIONS, TRTLLM_ENGINE
from pipeline.stages import models
from pipeline.stages.export.parity import AtWork
from pipeline.stages.export.reference import Reference
from pipeline.stages.export.served import served_module
from pipeline.stages.step import Step


@dataclass
class Exported:
    """What was written, at work.

    ``tokenizer`` is the server's, over the files that it will read.
    ``figures`` go into parity.json beside the comparison, ``faults`` stop the export.
    """

    at_work: AtWork
    tokenizer: Any = None
    figures: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    close: Callable[[], None] = lambda: None


def write(step: Step, tokenizer: Any, generation: dict[str, Any]) -> Exported:
    """Write the weights into ``output/repository``, from the bundle."""
    settings = step.section(schema.Export)
    if settings.target == CPU_OPENVINO:
        return openvino_model(step, tokenizer, settings.model_name, step.output / "bundle")
    version = step.output / "repository" / checkpoint_place(settings)
    if settings.target == TRTLLM_ENGINE:
        return _engine_checkpoint(step, tokenizer, generation, version)
    exported = _checkpoint(step, tokenizer, generation, version / CHECKPOINT)
    _adapters(settings, version / "adapters")
    return exported


def openvino_model(step: Step, tokenizer: Any, name: str, source: Path) -> Exported:
    """The model ``name`` of a repository for the CPU, from the Hugging Face folder ``source``."""
    import torch

    from pipeline.stages.export import bundle, openvino, quantise

    settings = step.section(schema.Export)
    version = step.output / "repository" / name / "1"
    kind = torch.bfloat16 if settings.weights == "bf16" else torch.float32
    samples: list[list[int]] = []
    if settings.weights == "int4":
        samples = quantise.calibration(step, tokenizer)[: openvino.SAMPLES]
    openvino.convert(bundle.load(source, kind), tokenizer, version / "openvino", settings.weights, samples)
    # The defaults of requests, the same bytes as the bundle's.
    shutil.copyfile(source / "generation_config.json", version / "openvino" / "generation_config.json")
    exported = openvino.Exported(version, kv_cache_gb=settings.kv_cache_gb, threads=step.threads)
    figures = {"calibration": {"samples": len(samples), "tokens": sum(map(len, samples))}} if samples else {}
    return Exported(exported, exported.engine.tokenizer, figures, close=exported.close)


def _checkpoint(step: Step, tokenizer: Any, generation: dict[str, Any], folder: Path) -> Exported:
    """A Hugging Face folder in bf16, or as Model Optimizer quantises it, and the model that its bytes mean."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.stages.export import bundle, quantise, quantised

    settings = step.section(schema.Export)
    half = bundle.load(step.output / "bundle", torch.bfloat16)
    if not PRECISIONS[settings.weights].modelopt:
        half.save_pretrained(folder)
        quantise.finish(tokenizer, folder, generation)
        back = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **models.FROM_FILES).eval()
        figures: dict[str, Any] = {}
    else:
        samples = quantise.calibration(step, tokenizer)
        done = quantise.quantise(half, settings.weights, settings.kv_cache, samples, step)
        said = quantise.write(done, tokenizer, folder, generation)
        del done, half  # one model, and not needed beside the one that is read back
        back = quantised.load(folder)
        figures = {
            "quantisation": said["quantization"],
            "calibration": {"samples": len(samples), "tokens": sum(map(len, samples))},
        }
    reference = Reference(back, generation["eos_token_id"], generation["pad_token_id"])
    return Exported(reference, _served_tokenizer(step, folder), figures)


def _engine_checkpoint(step: Step, tokenizer: Any, generation: dict[str, Any], version: Path) -> Exported:
    """TensorRT-LLM's own checkpoint, a file for each rank, and the Llama that all ranks together are.

    In bf16 every weight must come back bit for bit; quantised ones are what their codes say (inputs are not rounded here).
    """
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.stages.export import bundle, engine_checkpoint, quantise

    settings = step.section(schema.Export)
    half = bundle.load(step.output / "bundle", torch.bfloat16)
    quantised = bool(PRECISIONS[settings.weights].modelopt)
    whole = {} if quantised else {name: tensor.cpu().clone() for name, tensor in half.state_dict().items()}
    figures: dict[str, Any] = {"ranks": settings.serving.tensor}
    if quantised:
        samples = quantise.calibration(step, tokenizer)
        half = quantise.quantise(half, settings.weights, settings.kv_cache, samples, step)
        figures["calibration"] = {"samples": len(samples), "tokens": sum(map(len, samples))}
    engine_checkpoint.write(half, version / CHECKPOINT, settings.serving.tensor)
    config = half.config
    del half
    weights = engine_checkpoint.rebuild(version / CHECKPOINT)
    faults = [
        f"{name} is not what it was when all ranks are put together"
        for name, tensor in whole.items()
        if name in weights and not torch.equal(weights[name], tensor)
    ]
    figures["weights_rebuilt"] = len(weights)
    quantise.finish(tokenizer, version / "tokenizer", generation)
    config.save_pretrained(version / "tokenizer")
    back = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    tied = ["lm_head.weight"] if config.tie_word_embeddings else []
    kept = {name: tensor.float() for name, tensor in weights.items() if name not in tied}
    missing, unexpected = back.load_state_dict(kept, strict=False)
    lacking = [name for name in missing if name not in tied]
    if lacking or unexpected:
        faults.append(f"the checkpoint lacks {lacking[:3]} and has {unexpected[:3]} besides")
    back.tie_weights()
    reference = Reference(back, generation["eos_token_id"], generation["pad_token_id"])
    return Exported(reference, _served_tokenizer(step, version / "tokenizer"), figures, faults)


def _served_tokenizer(step: Step, folder: Path) -> Any:
    """What renders the chat template on the server, over the files that it will read."""
    front = step.output / "repository" / step.section(schema.Export).model_name / "1"
    return served_module(front, "conversations.tokenizer").ChatTokenizer.of_folder(folder)


def _adapters(settings: schema.Export, folder: Path) -> None:
    """Copies of the adapters' folders, safetensors only; the controller has looked whether they are there."""
    for name, source in settings.adapters.items():
        (folder / name).mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(Path(str(source)) / file, folder / name / file)
