"""The Triton model repository: OpenVINO IR made by Optimum Intel, served by ``deploy/triton``."""

from __future__ import annotations

import logging
import shutil
import string
import warnings
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.stages.step import InputError, Step

SOURCE = Path(__file__).resolve().parents[3] / "deploy" / "triton" / "openvino_genai"


def model_files(step: Step) -> Path:
    """The version folder of the Triton model: ``model.py`` and ``openvino/``."""
    return step.output / "repository" / step.section(schema.Export).model_name / "1"


def write(step: Step, model: Any, tokenizer: Any) -> None:
    """Write ``output/repository``."""
    settings = step.section(schema.Export)
    shutil.rmtree(step.output / "repository", ignore_errors=True)
    version = model_files(step)
    version.mkdir(parents=True)
    for file in sorted((SOURCE / "1").glob("*.py")):
        shutil.copyfile(file, version / file.name)
    template = string.Template((SOURCE / "config.pbtxt").read_text(encoding="utf-8"))
    # The template's own comment speaks of $names, which safe_substitute leaves alone.
    config = template.safe_substitute(
        model_name=settings.model_name,
        identity=step.identity,
        max_new_tokens=settings.max_new_tokens,
        kv_cache_gb=settings.kv_cache_gb,
    )
    (version.parent / "config.pbtxt").write_text(config, encoding="utf-8")
    convert(model, tokenizer, version / "openvino", settings.weights)


def convert(model: Any, tokenizer: Any, folder: Path, weights: str) -> None:
    """Write the OpenVINO IR of a causal language model and of its tokenizer.

    The model is stateful with a ``beam_idx`` input, which is what OpenVINO GenAI turns
    into paged attention.  Raises :class:`InputError` for a tokenizer or an architecture
    that cannot be converted.
    """
    import nncf
    import openvino
    from optimum.exporters.openvino.convert import export_from_model, export_tokenizer

    logging.getLogger("nncf").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit's tracer, about branches that Optimum handles
        try:
            export_from_model(
                model=model,
                output=folder,
                task="text-generation-with-past",
                stateful=True,
                preprocessors=[tokenizer],
            )
        except ValueError as error:
            raise InputError(f"OpenVINO cannot convert this model: {error}") from error
        export_tokenizer(tokenizer, folder)
    if not (folder / "openvino_tokenizer.xml").exists() or not (folder / "openvino_detokenizer.xml").exists():
        raise InputError(
            f"OpenVINO cannot convert the tokenizer ({type(tokenizer.backend_tokenizer.model).__name__})"
        )
    if weights == "int8":
        model_path = folder / "openvino_model.xml"
        small = folder / "small.xml"
        # 8-bit asymmetric per output channel, weights only (nncf.compress_weights).
        compressed = nncf.compress_weights(openvino.Core().read_model(model_path))
        openvino.save_model(compressed, small, compress_to_fp16=False)
        del compressed
        small.with_suffix(".bin").replace(model_path.with_suffix(".bin"))
        small.replace(model_path)
