"""The evaluation as a table that a person can read."""

from __future__ import annotations

from typing import Any

from pipeline.wording import counted, fixed, parameters

NO_DATA = "no test data"
SMALL = 50_000_000  # parameters below which nobody should expect right answers
# One of what is scored, by what several are called.
SINGULAR = {"documents": "document", "windows of documents": "window of documents", "answers": "answer"}


def markdown(report: dict[str, Any]) -> str:
    """The report as Markdown: every figure beside its baseline, then answers in full."""
    names = report["order"]
    lines = [
        f"# Evaluation on the held-out split: {', '.join(names)}",
        "",
        figures(report),
        "",
        *_caution(report),
    ]
    if report["answers"]:
        lines += ["## Answers in full", ""]
    for shown in report["answers"]:
        lines += [f"**{shown['question']}**", "", f"- authors: {shown['authors']}"]
        lines += [
            f"- {name}: {' / '.join(shown['models'][name].splitlines()) or '(nothing)'}" for name in names
        ]
        lines.append("")
    return "\n".join(lines)


def _caution(report: dict[str, Any]) -> list[str]:
    """What a reader of a small model's answers should know."""
    sizes = [size for size in report.get("parameters", {}).values() if size]
    if not sizes or max(sizes) >= SMALL:
        return []
    return [
        f"A model of {parameters(max(sizes))} parameters learns the form of an answer, not the facts: read the answers below "
        "as well formed and mostly wrong.",
        "",
    ]


def figures(report: dict[str, Any]) -> str:
    """The figures alone, each beside its baseline, and their changes with intervals (Markdown)."""
    names = report["order"]
    models, base = report["models"], report["baselines"]
    lines = [_row("", *names, "baseline"), _row("---", *["---:"] * len(names), "---")]

    def row(
        title: str, pick: Any, baseline: str, digits: int = 3, scale: float = 1.0, unit: str = ""
    ) -> None:
        cells = [_number(pick(models[name]), digits, scale, unit) for name in names]
        lines.append(_row(title, *cells, baseline))

    unigram, bigram = _number(base["unigram_perplexity"], 0), _number(base["bigram_perplexity"], 1)
    row("document perplexity", lambda m: m["perplexity"], f"unigram {unigram}, bigram {bigram}", 1)
    row("answer loss, nats a token, end token excluded", lambda m: m["answer_loss"], "")
    row("answer loss, end token included", lambda m: m["answer_loss_with_end"], "")
    row(
        "rise of the loss with another one's question",
        lambda m: m["wrong_question_gap"],
        "0: ignores the question",
    )
    for kind in report["kinds"]:
        shorter = _number(base["shorter_answer_accuracy"].get(kind), 1, 100, "%")
        for way in ("summed", "normalised"):
            row(
                f"{kind} preference accuracy, {way}",
                lambda m, k=kind, w=way: m["preference"].get(k, {}).get(w),
                f"the shorter answer {shorter}, chance 50%",
                1,
                100,
                "%",
            )
    authors = _number(base["authors_house_style_share"], 1, 100, "%")
    row(
        "greedy answers in house style",
        lambda m: m["house_style_share"],
        f"the authors' own {authors}",
        1,
        100,
        "%",
    )
    row("distinct greedy answers", lambda m: m["distinct_answer_share"], "", 1, 100, "%")
    row("words in a greedy answer", lambda m: m["mean_answer_words"], "", 1)
    if names[1:]:
        lines += ["", "## Changes, with paired 95% intervals", ""]
    for name in names[1:]:
        lines += _changes(name, report["changes"][name])
    scored = ", ".join(counted_of(what, count) for what, count in report["scored"].items())
    left = ", ".join(counted_of(what, count) for what, count in report["skipped"].items() if count)
    lines += ["", f"Scored: {scored}." + (f" Longer than the context and left out: {left}." if left else "")]
    return "\n".join(lines)


def counted_of(what: str, count: int) -> str:
    """How many of what, which is named by the word for several: ``1 style pair``."""
    return counted(count, SINGULAR.get(what, what.removesuffix("s")), what)


def _changes(name: str, change: dict[str, Any]) -> list[str]:
    relative = _number(change["answer_loss_relative"], 1, 100, "%", sign=True)
    lines = [
        f"- {name}: answer loss {_interval(change, 'answer_loss', 3, 1.0)} nats ({relative})",
        f"- {name}: greedy answers in house style {_interval(change, 'house_style_share', 1, 100.0)} points",
    ]
    for kind, entry in change["preference"].items():
        lines.append(f"- {name}: {kind} preference accuracy {_interval(entry, 'summed', 1, 100.0)} points")
    return lines


def _interval(figures: dict[str, Any], key: str, digits: int, scale: float) -> str:
    value, interval = figures[key], figures[f"{key}_ci"]
    if value is None or interval is None:
        return NO_DATA
    low, high = interval
    value, low, high = (fixed(scale * each, digits, sign=True) for each in (value, low, high))
    return f"{value} [{low}, {high}]"


def _number(value: float | None, digits: int, scale: float = 1.0, unit: str = "", sign: bool = False) -> str:
    if value is None:
        return NO_DATA
    return f"{fixed(scale * value, digits, sign)}{unit}"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
