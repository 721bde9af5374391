"""Export: the latest model as a bundle and as a Triton model repository, held to the trained one.

Published::

    bundle/                Hugging Face folder: one safetensors file, config, tokenizer with
                           its chat template, generation defaults, model card
    repository/            Triton model repository of the target (:mod:`pipeline.serving.repository`)
    probes.json            some prompts with the answers that a server of this export must give
    parity.json            answers, logits and perplexity of the exported model beside Hugging Face's
    export.json            what deployment needs to know: model name, identity, target, precision, versions
"""

from __future__ import annotations

import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline import schema
from pipeline.serving.repository import files
from pipeline.stages.step import Step, write_json

MAKERS = ("torch", "transformers", "openvino", "openvino-genai", "optimum-intel", "nncf", "nvidia-modelopt")


def run(step: Step) -> None:
    """Run the export stage.

    Raises :class:`InputError` for a base model without weights or a chat template, or one that the target cannot
    take, and ``RuntimeError`` with the figures when the exported model is not the trained one.
    """
    from pipeline.stages.export import bundle, card, parity, targets

    settings = step.section(schema.Export)
    started = time.monotonic()
    step.phase("bundle")
    model, tokenizer, generation = bundle.write(step)
    card.write(step, model, tokenizer)
    step.phase(f"{settings.target}, {settings.weights}")
    shutil.rmtree(step.output / "repository", ignore_errors=True)
    context = int(model.config.max_position_embeddings)
    del model  # one at a time in memory: each that follows is read from the bundle
    for path, text in files(settings, step.identity, context).items():
        file = step.output / "repository" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    exported = targets.write(step, tokenizer, generation)
    converted_s = time.monotonic() - started
    step.phase("parity check")
    try:
        reference = bundle.reference(step, generation)
        result = parity.check(step, reference, tokenizer, exported.at_work, exported.engine)
    finally:
        exported.close()
    result |= exported.figures
    result["faults"] += exported.faults
    probes = {
        "tokens": settings.parity_tokens,
        "different": result["tolerance"]["different"],
        "answers": result.pop("probes"),
    }
    write_json(step.output / "probes.json", probes)
    write_json(step.output / "parity.json", result)
    if result["faults"]:
        fault = (
            f"the exported model is not the trained one: {'; '.join(result['faults'])}; see parity.json in the step's "
            f"output"
        )
        step.error(fault)
        raise RuntimeError(fault)
    write_json(
        step.output / "export.json",
        {
            "model_name": settings.model_name,
            "identity": step.identity,
            "target": settings.target,
            "weights": settings.weights,
            "kv_cache": settings.kv_cache,
            "gpu": settings.gpu,
            "made_with": versions(),
        },
    )
    step.message(parity.describe(result))
    counts = {name: result[name] for name in ("prompts", "equal", "excused", "different", "template_equal")}
    step.finish(
        metrics={
            **counts,
            "target": settings.target,
            "weights": settings.weights,
            **{f"logits_{name}": value for name, value in result["logits"].items()},
            **{f"perplexity_{name}": value for name, value in (result["perplexity"] or {}).items()},
            "conversion_s": round(converted_s, 1),
        },
        headline=f"{settings.target} {settings.weights}, parity {result['equal'] + result['excused']}/"
        f"{result['prompts']}",
    )


def versions() -> dict[str, str]:
    """The packages that made the export."""
    found: dict[str, Any] = {}
    for package in MAKERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
