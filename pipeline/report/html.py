"""The page: what was made, how, how well, of what; from manifests alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline.record.bases import settings_shown, words_of
from pipeline.report.charts import bars, chain_picture, line_chart
from pipeline.runner.display import duration
from pipeline.runner.identity import SHORT
from pipeline.schema import flat
from pipeline.stages.evaluate.table import counted_of
from pipeline.wording import counted

Manifest = dict[str, Any]

# Title, and the curves that belong in one picture with their words; the first that exist are drawn.
CHARTS = (
    ("loss", {"loss": "training", "validation_loss": "validation", "validation_val_loss": "held out"}),
    (
        "reward margin",
        {
            "validation_margin": "all",
            "validation_style_margin": "style",
            "validation_content_margin": "content",
        },
    ),
    (
        "preference accuracy",
        {
            "validation_accuracy": "all",
            "validation_style_accuracy": "style",
            "validation_content_accuracy": "content",
        },
    ),
    ("KL to the reference, nats a token", {"validation_kl": "all"}),
    ("gradient norm", {"grad_norm": "before clipping"}),
    ("learning rate", {"lr": "learning rate"}),
)


def render(manifests: list[Manifest], defaults: dict[str, Any]) -> str:
    """The report of a chain as one self-contained HTML page.

    ``manifests`` are those of the chain's artifacts, in order; any stage may be missing.
    ``defaults`` maps a dotted setting to its default: what differs is shown first.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "figure": figure, "size": size, "counted": counted}
    by_stage = {str(manifest["stage"]): manifest for manifest in manifests}
    first, last = manifests[0], manifests[-1]
    return environment.get_template("report.html.j2").render(
        recipe=last["recipe"],
        description=last.get("description", ""),
        started=first["started"],
        seconds=sum(manifest["seconds"] for manifest in manifests),
        base=next((words_of(m["base"]) for m in reversed(manifests) if m.get("base")), None),
        machines=sorted({_machine(manifest) for manifest in manifests}),
        picture=Markup(_picture(manifests)),
        stages=[_stage(manifest, defaults, Markup) for manifest in manifests],
        curation=_curation(by_stage.get("curate"), Markup),
        evaluation=_evaluation(by_stage.get("evaluate")),
        gate=by_stage.get("export", {}).get("gate"),
        stale=_stale(by_stage),
        warnings=[(m["stage"], text) for m in manifests for text in m.get("warnings", ())],
        inputs=[(m["stage"], role, each) for m in manifests for role, each in m.get("inputs", {}).items()],
    )


def figure(value: Any, digits: int = 3) -> str:
    """A measured value, or a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{round(value, digits) + 0.0:,.{digits}f}"


def size(count: int) -> str:
    """Bytes for people."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return counted(count, "byte")


def _stale(by_stage: dict[str, Manifest]) -> list[tuple[str, str]]:
    """(stage, parent) pairs where the stage was made from another output than the parent's latest."""
    return [
        (stage, str(parent["stage"]))
        for stage, manifest in by_stage.items()
        for parent in manifest["parents"].values()
        if parent["stage"] in by_stage
        and parent.get("output_digest") != by_stage[parent["stage"]]["output_digest"]
    ]


def _machine(manifest: Manifest) -> str:
    machine = manifest["made_by"]["machine"]
    return f"{counted(machine['cores'], 'core')} of {machine['processor']}"


def _picture(manifests: list[Manifest]) -> str:
    places = {str(manifest["stage"]): place for place, manifest in enumerate(manifests)}
    boxes = [(str(m["stage"]), duration(m["seconds"]), str(m["identity"])[:SHORT]) for m in manifests]
    arrows = sorted(
        {
            (places[parent["stage"]], places[str(m["stage"])])
            for m in manifests
            for parent in m["parents"].values()
            if parent["stage"] in places
        }
    )
    return chain_picture(boxes, arrows)


def _stage(manifest: Manifest, defaults: dict[str, Any], markup: Any) -> dict[str, Any]:
    settings = settings_shown(flat(manifest["parts"]["settings"]), manifest.get("base"))
    own = {key: value for key, value in settings.items() if key in defaults and value != defaults[key]}
    curves = manifest.get("curves", {})
    charts = [
        line_chart(title, {words: curves[name] for name, words in names.items() if name in curves})
        for title, names in CHARTS
    ]
    files = manifest["files"]
    return {
        **{
            name: manifest[name]
            for name in ("stage", "identity", "headline", "started", "seconds", "peak_memory_gb")
        },
        "output_digest": manifest["output_digest"],
        "made_by": manifest["made_by"],
        "attempts": manifest.get("attempts", []),
        "planned": _planned(manifest),
        "parents": manifest["parents"],
        "changed": own,
        "rest": {key: value for key, value in settings.items() if key not in own},
        "charts": [markup(chart) for chart in charts if chart],
        "files": len(files),
        "bytes": sum(entry["bytes"] for entry in files.values()),
        "parity": manifest["metrics"] if "prompts" in manifest["metrics"] else None,
    }


def _planned(manifest: Manifest) -> dict[str, Any] | None:
    """What was planned for a step beside what came of it: rows of words, and a reason why it was run all the same."""
    plan = manifest.get("plan")
    if not plan:
        return None
    rows = []
    if plan.get("seconds"):
        basis = "two real steps" if plan["seconds_from"] == "calibration" else "the model of throughput"
        error = plan.get("seconds_error")
        basis += f", mean held-out error {error['mean']:.0%}" if error else ""
        rows.append(
            (
                "time",
                duration(plan["seconds"]),
                duration(manifest["seconds"]),
                manifest["seconds"] / plan["seconds"],
                basis,
            )
        )
    if plan.get("memory_bytes"):
        planned, peak = plan["memory_bytes"], manifest["peak_memory_gb"] * 1e9
        at_gpus = bool(plan["gpus"])
        basis = (
            "of a GPU; beside it main memory" if at_gpus else "of a process; beside it its resident memory"
        )
        rows.append(("memory", size(planned), size(peak), None if at_gpus else peak / planned, basis))
    return {
        "rows": rows,
        "place": plan.get("place", ""),
        "layout": plan.get("layout", ""),
        "verdict": plan["verdict"],
        "override_reason": plan.get("override_reason"),
    }


def _curation(manifest: Manifest | None, markup: Any) -> dict[str, Any] | None:
    if manifest is None or "documents" not in manifest["metrics"]:
        return None
    metrics = manifest["metrics"]
    documents = metrics["documents"]
    dropped = {name: count for name, count in documents["dropped"].items() if count}
    ordered = dict(sorted(dropped.items(), key=lambda item: -item[1]))
    return {
        "raw": documents["raw"],
        "kept": documents["kept"],
        "dropped": sum(dropped.values()),
        "picture": markup(bars("documents dropped, by reason", ordered, documents["raw"])),
        "sizes": metrics.get("sizes", {}),
        "redacted": {k: v for k, v in metrics.get("redacted", {}).items() if v},
        "left_out": {k: v for k, v in metrics.get("left_out_of_pairs", {}).items() if v},
        "unreadable": metrics.get("unreadable_records", 0),
        "inputs": metrics.get("inputs", {}),
    }


def _evaluation(manifest: Manifest | None) -> dict[str, Any] | None:
    """The evaluation's table: rows of (title, figures by model, what to hold them against)."""
    if manifest is None or "models" not in manifest["metrics"]:
        return None
    report = manifest["metrics"]
    names, models, base = report["order"], report["models"], report["baselines"]

    def row(
        title: str, key: str, against: str, digits: int = 3, scale: float = 1.0
    ) -> tuple[str, list[str], str]:
        values = [models[name].get(key) for name in names]
        return title, [figure(None if v is None else v * scale, digits) for v in values], against

    rows = [
        row(
            "document perplexity",
            "perplexity",
            f"unigram {figure(base['unigram_perplexity'], 0)}, bigram {figure(base['bigram_perplexity'], 1)}",
            1,
        ),
        row("answer loss, nats a token, end token excluded", "answer_loss", ""),
        row("rise of the loss with another one's question", "wrong_question_gap", "0 ignores the question"),
    ]
    for kind in report["kinds"]:
        values = [models[name]["preference"].get(kind, {}).get("summed") for name in names]
        shorter = base["shorter_answer_accuracy"].get(kind)
        against = f"the shorter answer {figure(None if shorter is None else 100 * shorter, 1)}, chance 50"
        rows.append(
            (
                f"{kind} preference accuracy, %",
                [figure(None if v is None else 100 * v, 1) for v in values],
                against,
            )
        )
    authors = base["authors_house_style_share"]
    rows.append(
        row(
            "greedy answers in house style, %",
            "house_style_share",
            f"the authors' own {figure(None if authors is None else 100 * authors, 1)}",
            1,
            100,
        )
    )
    return {
        "names": names,
        "rows": rows,
        "scored": [counted_of(what, count) for what, count in report["scored"].items()],
    }
