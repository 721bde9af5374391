"""Export: the latest model as a bundle and as a Triton model repository, checked for parity.

Published::

    bundle/                Hugging Face folder: one safetensors file, config, tokenizer with
                           its chat template, generation defaults, model card
    repository/<name>/     Triton model repository around OpenVINO GenAI
    parity.json            greedy tokens of the exported model beside Hugging Face's
    export.json            what deployment needs to know: model name, identity, precision
"""

from __future__ import annotations

import time

from pipeline import schema
from pipeline.stages.step import InputError, Step, write_json


def run(step: Step) -> None:
    """Run the export stage.

    Raises :class:`InputError` for a base model without weights or a chat template, and
    ``RuntimeError`` with the figures when the exported model is not the trained one.
    """
    from pipeline.stages.export import bundle, card, parity, repository

    settings = step.section(schema.Export)
    check_name(settings.model_name)
    started = time.monotonic()
    step.phase("bundle")
    model, tokenizer = bundle.write(step)
    card.write(step, model, tokenizer)
    step.phase("OpenVINO conversion")
    repository.write(step, model, tokenizer)
    converted_s = time.monotonic() - started
    step.phase("parity check")
    result = parity.check(step, model, tokenizer)
    write_json(step.output / "parity.json", result)
    fault = parity.fault(result)
    if fault:
        step.error(fault)
        raise RuntimeError(fault)
    write_json(
        step.output / "export.json",
        {
            "model_name": settings.model_name,
            "identity": step.identity,
            "target": settings.target,
            "weights": settings.weights,
        },
    )
    step.message(parity.describe(result))
    figures = {name: result[name] for name in ("prompts", "equal", "excused", "different", "template_equal")}
    step.finish(
        metrics={**figures, "weights": settings.weights, "conversion_s": round(converted_s, 1)},
        headline=f"{settings.weights}, parity {result['equal'] + result['excused']}/{result['prompts']}",
    )


def check_name(name: str) -> None:
    """Raise :class:`InputError` for a name that cannot be a folder and part of a URL."""
    if not name or not all(c.isalnum() or c in "-_." for c in name) or name.startswith("."):
        raise InputError(
            f"export.model_name: {name!r} cannot be used; give letters, digits, '-', '_' and '.' only"
        )
