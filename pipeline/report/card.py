"""The model card of an exported bundle, in Hugging Face's format.

https://huggingface.co/docs/hub/model-cards.  A pure function of the record: no times, no
machine, no paths, so that the bundle stays the same bytes whenever it is made.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.wording import counted

NAMES = {
    "pretrain": "pre-trained from scratch",
    "train": "fine-tuned on instruction pairs",
    "align": "aligned on preference pairs by the loss {loss}",
}
SMALL = 50_000_000  # parameters below which nobody should expect right answers


def model_card(
    *,
    recipe: str,
    model_name: str,
    identity: str,
    steps: dict[str, dict[str, Any]],
    parameters: int,
    evaluation: dict[str, Any] | None,
    data: dict[str, Any] | None,
    weights: str,
    chat_example: str,
    attributes: dict[str, int] | None = None,
    forged: list[str] | None = None,
    base: dict[str, Any] | None = None,
    context: int | None = None,
) -> str:
    """The text of the bundle's ``README.md``.

    ``steps`` maps a stage to its ``identity`` and ``settings`` (flat), oldest first;
    ``evaluation`` is the content of ``evaluation.json``, ``data`` of curation's
    ``report.json``; ``weights`` the precision of the served copy; ``attributes`` what the chat
    template asks for; ``forged`` the turns that a user's text can pass for; ``base`` the model that it started from, as
    :func:`pipeline.runner.base_record.describe` has it; ``context`` the tokens of a prompt and its answer that are served.
    """
    metadata = _metadata(model_name, recipe, evaluation, list(steps), base)
    sections = [
        f"---\n{metadata}\n---\n\n# {model_name}",
        f"A causal language model of {counted(parameters, 'parameter')}, {_made(steps, base)}, "
        f"made by the recipe `{recipe}`. The weights here are fp32; the served copy is {weights}."
        + (f" A prompt and its answer have {counted(context, 'token')} at most." if context else ""),
        *([_base(base)] if base else []),
        _use(parameters, steps, base),
        _prompt(chat_example, attributes or {}, forged or []),
        _training(steps),
    ]
    if data:
        sections.append(_data(data))
    if evaluation:
        sections.append(_evaluation(evaluation))
    sections.append(
        "## Lineage\n\n"
        f"Export `{identity}`. `lifecycle trace {identity[:12]}`, or `lifecycle trace` with the address of a "
        "running server or with any file of this folder, goes back from here to the data: settings, code and "
        "toolchain digests, input files with digests and counts."
    )
    return "\n\n".join(sections) + "\n"


def _metadata(
    model_name: str,
    recipe: str,
    evaluation: dict[str, Any] | None,
    stages: list[str],
    base: dict[str, Any] | None,
) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    results = []
    last = evaluation["order"][-1] if evaluation else None
    if evaluation and last:
        figures = evaluation["models"][last]
        found = {
            "perplexity": ("document perplexity", figures["perplexity"]),
            "loss": ("answer loss, nats a token", figures["answer_loss"]),
            **{
                f"{kind}-preference-accuracy": (f"{kind} preference accuracy", entry["summed"])
                for kind, entry in figures["preference"].items()
            },
        }
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=recipe,
                dataset_name=f"held-out split of {recipe}",
                dataset_split="test",
                metric_type=kind,
                metric_name=name,
                metric_value=round(value, 4),
            )
            for kind, (name, value) in found.items()
            if value is not None
        ]
    card = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["nemo-lifecycle", *stages],
        model_name=model_name,
        eval_results=results or None,
        **({} if base is None else _origin(base)),
    )
    return str(card.to_yaml()).strip()


def _origin(base: dict[str, Any]) -> dict[str, str]:
    """The metadata by which the hub knows a model's base and licence; a licence's identifier has no spaces."""
    found = {"base_model": str(base["name"])}
    licence = base["licence"]
    if licence and re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        found["license"] = licence
    elif licence:
        found |= {"license": "other", "license_name": licence}
    return found


def _base(base: dict[str, Any]) -> str:
    named = f"`{base['name']}`" + (f", revision `{base['revision']}`" if base["revision"] else "")
    link = f" (https://huggingface.co/{base['name']})" if base["hub"] else ""
    licence = (
        f"Its licence, {base['licence']}, holds for these weights, too."
        if base["licence"]
        else "Its folder states no licence: find out what it allows before these weights are passed on."
    )
    return (
        f"## Base model\n\nIt starts from {named}{link}, {counted(base['parameters'], 'parameter')} in "
        f"{counted(base['layers'], 'layer')} of width {base['hidden_size']:,}, whose training data are not known here. {licence}"
    )


def _made(steps: dict[str, Any], base: dict[str, Any] | None) -> str:
    done = [
        NAMES[stage].format(loss=step["settings"].get("align.loss", "dpo"))
        for stage, step in steps.items()
        if stage in NAMES
    ]
    if base is None:
        return ", ".join(done) if done else "as it was given"
    return ", ".join([f"{base['name']}", *done]) if done else f"{base['name']} as it was given"


def _use(parameters: int, steps: dict[str, Any], base: dict[str, Any] | None) -> str:
    text = "## Use and limits\n\nFor trying out and testing the chain that made it."
    if parameters < SMALL:
        text += (
            " A model this small has learned the form of an answer, not the facts: expect fluent and mostly wrong "
            "sentences. Do not rely on anything it says."
        )
    if base is None:
        text += " It was trained on the data named below and on nothing else; it"
    elif not {"train", "align"}.isdisjoint(steps):
        text += f" Here it was trained on the data named below; what {base['name']} had learned before stays in it. It"
    else:
        text += " It was not trained here. It"
    return text + (
        " was not examined for bias, harmful output or memorised personal data beyond what the redaction below counts."
    )


def _prompt(chat_example: str, attributes: dict[str, int], forged: list[str]) -> str:
    text = (
        "## Prompt format\n\nThe chat template of the tokenizer renders one question as:\n\n"
        f"```\n{chat_example}\n```"
    )
    if forged:
        text += (
            f"\n\nIt marks turns by text and not by tokens of their own, so what a user writes can pass for "
            f"{' or '.join(forged)}: do not rely on the system turn to bind users."
        )
    if not attributes:
        return text
    asked = ", ".join(f"{name} {value}" for name, value in sorted(attributes.items()))
    return text + (
        f"\n\nThe model was fine-tuned on answers of known attributes, and the template asks for {asked} (of 0 to 4). "
        "A question that ends with such a line of its own, behind an empty one, is left as it is and so asks for "
        "other values."
    )


def _training(steps: dict[str, dict[str, Any]]) -> str:
    lines = ["## Training", "", "| stage | identity | settings |", "| --- | --- | --- |"]
    for stage, step in steps.items():
        settings = ", ".join(f"{key.partition('.')[2]}={value}" for key, value in step["settings"].items())
        lines.append(f"| {stage} | `{step['identity'][:12]}` | {settings} |")
    return "\n".join(lines)


def _data(data: dict[str, Any]) -> str:
    documents = data["documents"]
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in documents["dropped"].items() if count)
    redacted = ", ".join(f"{count:,} {kind}" for kind, count in data["redacted"].items() if count)
    lines = [
        "## Training data",
        "",
        f"{counted(documents['raw'], 'raw document')}, {documents['kept']:,} kept. Dropped: {dropped or 'none'}. "
        f"Redacted: {redacted or 'nothing'}.",
        "",
        "| data set | train | validation | test |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, sizes in data["sizes"].items():
        lines.append(f"| {name} | {sizes['train']:,} | {sizes['validation']:,} | {sizes['test']:,} |")
    return "\n".join(lines)


def _evaluation(evaluation: dict[str, Any]) -> str:
    from pipeline.stages.evaluate.table import figures

    return "## Evaluation\n\n" + figures(evaluation).replace("\n## ", "\n### ")
