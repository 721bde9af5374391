"""Export: the latest model as a bundle and as a Triton model repository, held to the trained one.

Published::

    bundle/                Hugging Face folder: one safetensors file, config, tokenizer with
                           its chat template, generation defaults, model card
    repository/            Triton model repository of the target (:mod:`pipeline.serving.repository`)
    probes.json            some prompts with the answers that a server of this export must give
    parity.json            answers, logits and perplexity of the exported model beside Hugging Face's; below
                           ``variants`` the same of every merged adapter, by its model's name
    export.json            what deployment needs to know: the names that a client may ask for, identity, target,
                           precision, versions
"""

from __future__ import annotations

import shutil
import time
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import schema
from pipeline.serving.repository import files, fronts, models, served_context
from pipeline.stages.models import latest_model, merge_adapter
from pipeline.stages.step import InputError, Step, write_json

if TYPE_CHECKING:
    from pipeline.stages.export.targets import Exported

MAKERS = ("torch", "transformers", "openvino", "openvino-genai", "optimum-intel", "nncf", "nvidia-modelopt")


def run(step: Step) -> None:
    """Run the export stage.

    Raises :class:`InputError` for a base model without weights or a chat template, or one that the target cannot
    take, and with the figures where the exported model is further from the trained one than it may be.
    """
    from pipeline.stages.export import bundle, card, parity, targets

    settings = step.section(schema.Export)
    started = time.monotonic()
    step.phase("bundle")
    model, tokenizer, generation = bundle.write(step)
    step.phase(f"{settings.target}, {settings.weights}")
    shutil.rmtree(step.output / "repository", ignore_errors=True)
    trained_on = None if latest_model(step) == "base" else int(step.settings["model"]["context"])
    context = served_context(settings, trained_on, int(model.config.max_position_embeddings))
    card.write(step, model, tokenizer, context)
    del model  # one at a time in memory: each that follows is read from the bundle
    for path, text in files(settings, step.identity, context).items():
        file = step.output / "repository" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    exported = targets.write(step, tokenizer, generation)
    converted_s = time.monotonic() - started
    result = _held(step, step.output / "bundle", tokenizer, generation, exported, context)
    del exported  # its engine would stay in memory beside the variants'
    faults = list(result["faults"])
    variants = {}
    for name in fronts(settings)[1:]:
        step.phase(f"{name}, merged")
        merged = _merged(step, name, str(settings.adapters[name]))
        variants[name] = _held(
            step,
            merged,
            tokenizer,
            generation,
            targets.openvino_model(step, tokenizer, name, merged),
            context,
        )
        faults += [f"{name}: {fault}" for fault in variants[name]["faults"]]
        shutil.rmtree(merged)
    write_json(step.output / "probes.json", _probes(settings, {settings.model_name: result, **variants}))
    write_json(step.output / "parity.json", {**result, "variants": variants})
    if faults:
        raise InputError(
            f"the export as {settings.weights} for {settings.target} is not the trained model: {'; '.join(faults)}. "
            "Choose other export.weights, or say in export.tolerance what it may cost; parity.json in the step's work "
            "folder has every figure"
        )
    write_json(
        step.output / "export.json",
        {
            "model_name": settings.model_name,
            "models": models(settings),
            "identity": step.identity,
            "target": settings.target,
            "weights": settings.weights,
            "kv_cache": settings.kv_cache,
            "context": context,
            "gpu": settings.gpu,
            "made_with": versions(),
        },
    )
    step.message(parity.describe(result))
    for name, figures in variants.items():
        step.message(f"{name}: {parity.describe(figures)}")
    counts = {name: result[name] for name in ("prompts", "equal", "excused", "different", "template_equal")}
    step.finish(
        metrics={
            **counts,
            "target": settings.target,
            "weights": settings.weights,
            "models": len(models(settings)),
            **{f"logits_{name}": value for name, value in result["logits"].items()},
            **{f"perplexity_{name}": value for name, value in (result["perplexity"] or {}).items()},
            "conversion_s": round(converted_s, 1),
        },
        headline=f"{settings.target} {settings.weights}, parity {result['equal'] + result['excused']}/"
        f"{result['prompts']}",
    )


def _held(
    step: Step, source: Path, tokenizer: Any, generation: dict[str, Any], exported: Exported, context: int
) -> dict[str, Any]:
    """The exported model beside the one that it was made of, in the folder ``source``; it is closed then."""
    from pipeline.stages.export import bundle, parity

    step.phase("parity check")
    try:
        reference = bundle.reference(source, generation)
        result = parity.check(step, reference, tokenizer, exported.at_work, exported.tokenizer, context)
    finally:
        exported.close()
    return result | exported.figures | {"faults": result["faults"] + exported.faults}


def _merged(step: Step, name: str, adapter: str) -> Path:
    """A Hugging Face folder of the bundle with an adapter in its weights."""
    folder = step.state / "merged"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        merge_adapter(step.output / "bundle", Path(adapter), folder)
    except InputError as error:
        raise InputError(f"export.adapters.{name}: {error}") from error
    return folder


def _probes(settings: schema.Export, results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The prompts that a server will be asked, out of each model's comparison, in turn."""
    found = [[{"model": name, **each} for each in result.pop("probes")] for name, result in results.items()]
    return {
        "tokens": settings.parity_tokens,
        "answers": [each for row in zip_longest(*found) for each in row if each is not None],
    }


def versions() -> dict[str, str]:
    """The packages that made the export."""
    found: dict[str, Any] = {}
    for package in MAKERS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
