"""The bundle's model card, from the manifests and reports of what the model was made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.chat_templates import forged
from pipeline.conversations.tokenizer import chat_tokenizer
from pipeline.report.card import model_card
from pipeline.stages.step import Step

QUESTION = "What does the function os.path.join do?"


def write(step: Step, model: Any, tokenizer: Any, context: int) -> None:
    """Write ``output/bundle/README.md``; ``context``: tokens of a prompt and its answer that are served."""
    settings = step.section(schema.Export)
    ours = chat_tokenizer(tokenizer)
    chat = ours.render([{"role": "user", "content": QUESTION}])
    text = model_card(
        recipe=step.recipe,
        model_name=settings.model_name,
        identity=step.identity,
        steps=_steps(step),
        parameters=model.num_parameters(),
        evaluation=_read(step.inputs.get("evaluation"), "evaluation.json"),
        data=_read(step.inputs.get("data"), "report.json"),
        weights=settings.weights,
        chat_example=chat.strip(),
        forged=forged(ours),
        base=step.extra.get("base"),
        context=context,
        attributes=step.settings["evaluate"]["attributes"],
    )
    (step.output / "bundle" / "README.md").write_text(text, encoding="utf-8")


def _steps(step: Step) -> dict[str, dict[str, Any]]:
    """Identity and own settings of every step that the export rests on, oldest first."""
    found = {}
    for folder in step.inputs.values():
        manifest = _read(folder, "manifest.json")
        if manifest:
            stage = manifest["stage"]
            own = schema.flat({stage: manifest["parts"]["settings"].get(stage, {})})
            found[stage] = {"identity": manifest["identity"], "settings": own}
    order = [stage for stage in schema.ALL_STAGES if stage in found]
    return {stage: found[stage] for stage in order}


def _read(folder: Path | None, name: str) -> dict[str, Any] | None:
    if folder is None or not (folder / name).is_file():
        return None
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content
