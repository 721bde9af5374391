"""The data card: what curation read, dropped, changed and kept, as one page from one JSON object.

A data set is only as good as what can be said of it, so the page shows the way of the documents
(a funnel, every drop by its reason), what the texts look like (lengths, languages, duplicates,
samples with their changes marked) and where they come from (sources, licences, shares).

The texts in it are anybody's.  Every word reaches the page through the template's autoescaping,
this module makes no HTML; characters that no reader can see, or that turn the direction of the text
around, are spelled out.  Sections without figures are left out.  The same card gives the same bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import strict_json
from pipeline.report.charts import ticks

if TYPE_CHECKING:
    from jinja2 import Template

Part = tuple[float, float, str]  # of a bar: start and width in percent, and the class of its colour
Row = dict[str, Any]  # of a bar chart: name, bars (lists of parts), figure, note
Piece = tuple[str, str]  # of a text: "same", "mark" (changed) or "skip" (words about what is not shown)

READ, SHOWN, CONTEXT = 4000, 1200, 120  # characters of a text: compared, shown, shown around a change
LANGUAGES, SIZES, EXAMPLES, SAMPLES, QUARANTINED = 15, 20, 5, 40, 20  # at most so many are listed
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 400, 200, 42, 12, 10, 36  # of a histogram, in user units

# Controls, soft hyphens, zero-width spaces, marks and overrides of direction, halves of surrogate pairs.
# The joiners U+200C and U+200D stay: Persian, the Indic scripts and emoji are written with them.
UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]"
)


def render_data_card(card: dict[str, Any]) -> str:
    """One self-contained HTML page from what curation counted.

    Any key may be absent, null or empty; figures that contradict each other are pointed out on the page.

    Raises ValueError for a histogram whose edges do not fit its counts.
    """
    documents, stages = _part(card, "documents"), _list(card, "stages")
    evaluation = _part(card, "decontamination")
    return _template().render(
        **{name: str(card.get(name) or "") for name in ("recipe", "preset", "identity")},
        **{name: _part(card, name) for name in ("documents", "redactions", "splits")},
        **{name: list(_flat(_part(card, name))) for name in ("left_out", "instructions", "preferences")},
        dropped=_dropped(documents),
        tokens=sum(_count(each, "tokens") for each in _part(card, "splits").values()),
        problems=_problems(documents, stages),
        funnel=_funnel(documents, stages),
        stages=stages,
        drops=_drops(documents, [str(stage.get("name")) for stage in stages]),
        histograms=_histograms(_part(card, "lengths")),
        languages=_languages(_part(card, "languages")),
        duplicates=[_duplicates(kind, each) for kind, each in _part(card, "duplicates").items() if each],
        decontamination=_part(evaluation, "sets") if "sets" in evaluation else evaluation,
        sources=_list(card, "sources"),
        shares=_shares(_list(card, "sources")),
        blend=_blend(_part(card, "blend")),
        samples=[_sample(each) for each in _list(card, "samples")[:SAMPLES]],
        more_samples=len(_list(card, "samples")[SAMPLES:]),
        quarantine=_list(card, "quarantine")[:QUARANTINED],
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # Also on what no code here has looked at; markup is the template's own and stays as it is.
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters |= {"figure": figure, "share": share, "setting": _setting}
    return environment.get_template("data_card.html.j2")


def visible(text: str) -> str:
    """The text with every character that cannot be seen spelled out, as in ``⟨U+200B⟩``.

    Without this a page could not show what Unicode repair took away, an override of direction would
    run through the page, and half a surrogate pair could not be written as UTF-8.
    """
    return UNSEEN.sub(lambda found: f"⟨U+{ord(found[0]):04X}⟩", text)


def figure(value: Any) -> str:
    """A count in full, a measurement in four digits, a dash where there is none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return _setting(value)


def share(part: float | None, whole: float | None = 1) -> str:
    """A share in percent; what is neither nothing nor everything never reads as if it were."""
    if part is None or not whole:
        return "–"
    value = part / whole
    if 0 < value < 0.0005:
        return "<0.1%"
    return ">99.9%" if 0.9995 <= value < 1 else f"{value:.1%}"


def marked(before: str, after: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, the words that differ marked, long unchanged stretches left out.

    ``READ`` characters of each, from shortly before the first difference, are compared word by word
    (difflib); about ``SHOWN`` are shown.
    """
    pairs = enumerate(zip(before, after, strict=False))
    same = next((place for place, (a, b) in pairs if a != b), min(len(before), len(after)))
    start = same - 2 * CONTEXT if same > READ // 2 and before != after else 0
    left, right = (re.findall(r"\s+|\w+|[^\w\s]", text[start : start + READ]) for text in (before, after))
    opcodes = SequenceMatcher(None, left, right).get_opcodes()
    steps = [(name, "".join(left[a:b]), "".join(right[c:d])) for name, a, b, c, d in opcodes]
    cut = [len(text) > start + READ for text in (before, after)]
    if (
        any(name != "equal" for name, _, _ in steps[:-1])
        and {
            "equal": False,
            "insert": cut[0],
            "delete": cut[1],
            "replace": any(cut),
        }[steps[-1][0]]
    ):
        steps.pop()  # what matches it may stand in the other text beyond the part that is compared
    sides = []
    for side, whole in ((1, before), (2, after)):
        pieces: list[Piece] = [("skip", f"… {start:,} characters … ")] if start else []
        for step in steps:
            text = str(step[side])
            if step[0] == "equal" and len(steps) > 1 and len(text) > 3 * CONTEXT:
                omitted = f" … {len(text) - 2 * CONTEXT:,} characters … "
                pieces += [("same", text[:CONTEXT]), ("skip", omitted), ("same", text[-CONTEXT:])]
            elif text:
                pieces.append(("same" if step[0] == "equal" else "mark", text))
        sides.append(_bounded(pieces, len(whole) - start - sum(len(step[side]) for step in steps)))
    return sides[0], sides[1]


def histogram(title: str, series: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where to draw the outlines of counts over one logarithmic axis; None when there is nothing to draw.

    ``series`` maps a legend's word to ``{"edges", "counts", "unit"}``.  An edge of zero stands one
    bin's width before the smallest edge above it.

    Raises ValueError when edges do not increase from zero or are not one more than the counts.
    """
    drawn: dict[str, list[tuple[float, float, int]]] = {}
    for name, each in series.items():
        edges, counts = each.get("edges") or [], each.get("counts") or []
        if not any(counts):
            continue
        rising = all(0 <= low < high < math.inf for low, high in pairwise(edges))
        if len(edges) != len(counts) + 1 or not rising:
            raise ValueError(
                f"lengths.{name}: {len(counts)} counts need {len(counts) + 1} increasing edges from 0 or more,"
                f" and there are {len(edges)}: {edges}"
            )
        full = [place for place, count in enumerate(counts) if count]
        span = range(full[0], full[-1] + 1)
        drawn[name] = [(edges[place], edges[place + 1], counts[place]) for place in span]
    if not drawn:
        return None
    bins = [each for listed in drawn.values() for each in listed]
    zero = min(min(high / (low or high / 2) for low, high, _ in bins), 4.0)
    least = min(low or high / zero for low, high, _ in bins)
    reach = math.log(max(high for _, high, _ in bins) / least)
    y_ticks = ticks(0, max(count for _, _, count in bins))

    def across(x: float) -> float:
        return round(LEFT + math.log((x or least) / least) / reach * (WIDTH - LEFT - RIGHT), 1)

    def down(y: float) -> float:
        return round(HEIGHT - BOTTOM - y / y_ticks[-1] * (HEIGHT - TOP - BOTTOM), 1)

    outlines = []
    for name, one in drawn.items():
        path = f"M{across(one[0][0])} {down(0)}"
        path += "".join(f"V{down(count)}H{across(high)}" for _, high, count in one)
        outlines.append({"name": name, "path": path + f"V{down(0)}", "median": _median(one)})
    zeros = [(float(LEFT), "0")] if any(low == 0 for low, _, _ in bins) else []
    decades = [(across(x), _short(x)) for x in _decades(least, least * math.exp(reach))]
    return {
        "title": title,
        "unit": next((str(each["unit"]) for each in series.values() if each.get("unit")), ""),
        "outlines": outlines,
        "x_ticks": zeros + [tick for tick in decades if not zeros or tick[0] > LEFT + 16],
        "y_ticks": [(down(y), _short(y)) for y in y_ticks if y == int(y)],
        "box": (WIDTH, HEIGHT, LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM),
    }


def _part(card: Mapping[str, Any], key: str) -> dict[str, Any]:
    return dict(card.get(key) or {})


def _list(card: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    return list(card.get(key) or [])


def _count(each: Mapping[str, Any] | None, key: str) -> int:
    return int((each or {}).get(key) or 0)


def _row(name: Any, words: str, *bars: list[Part], note: str = "") -> Row:
    return {"name": "" if name is None else str(name), "figure": words, "bars": bars, "note": note}


def _bar(part: float, whole: float, colour: str, start: float = 0) -> Part:
    """A part of a bar; what is there at all can be seen."""
    width = part / whole * 100 if whole else 0.0
    return round(start, 2), round(max(width, 0.4) if part else 0.0, 2), colour


def _dropped(documents: Mapping[str, Any]) -> int:
    return sum(sum(reasons.values()) for reasons in _part(documents, "dropped").values() if reasons)


def _problems(documents: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[str]:
    """What does not add up, in sentences."""
    found = []
    raw, kept, dropped = documents.get("raw"), documents.get("kept"), _dropped(documents)
    if raw is not None and kept is not None and raw != kept + dropped:
        total = f"{kept:,} kept and {dropped:,} dropped make {kept + dropped:,}"
        found.append(f"{raw:,} documents were read, but {total}.")
    for first, second in pairwise(stages):
        out, into = first.get("out"), second.get("in")
        if out is not None and into is not None and out != into:
            names = first.get("name"), second.get("name")
            found.append(f"{names[0]} left {out:,} documents, but {names[1]} read {into:,}.")
    for name, reasons in _part(documents, "dropped").items():
        own = [stage for stage in stages if stage.get("name") == name]
        known = own and all(None not in (stage.get("in"), stage.get("out")) for stage in own)
        lost = sum(_count(stage, "in") - _count(stage, "out") for stage in own)
        listed = sum((reasons or {}).values())
        if known and lost != listed:
            found.append(f"{name} took {lost:,} documents away, but {listed:,} drops are listed by reason.")
    return found


def _funnel(documents: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows of a bar chart: what is left after each stage, and what that stage took."""
    if not stages:
        return []
    whole = documents.get("raw") or max(_count(stage, "in") for stage in stages) or 1
    rows = [_row("read", f"{whole:,}", [_bar(whole, whole, "one")])]
    for stage in stages:
        left, lost = _count(stage, "out"), max(0, _count(stage, "in") - _count(stage, "out"))
        parts = [_bar(left, whole, "one"), _bar(lost, whole, "two", 100 * left / whole)]
        words = f"{left:,} ({share(left, whole)})"
        rows.append(_row(stage.get("name"), words, parts, note=f"−{lost:,}" if lost else ""))
    return rows


def _drops(documents: Mapping[str, Any], order: Sequence[str]) -> list[dict[str, Any]]:
    """The drops by stage, in the order of the stages, and by reason, the most frequent first."""
    dropped = {name: reasons for name, reasons in _part(documents, "dropped").items() if reasons}
    whole = documents.get("raw") or _dropped(documents)
    most = max((count for reasons in dropped.values() for count in reasons.values()), default=0)
    found = []
    for name in sorted(dropped, key=lambda name: (order.index(name) if name in order else len(order), name)):
        reasons = sorted(dropped[name].items(), key=lambda item: (-item[1], item[0]))
        rows = [
            (why, count, share(count, whole), [_bar(count, most, "two")]) for why, count in reasons if count
        ]
        none = [reason for reason, count in reasons if not count]
        total = sum(dropped[name].values())
        found.append(
            {"stage": name, "total": total, "share": share(total, whole), "rows": rows, "none": none}
        )
    return found


def _histograms(lengths: Mapping[str, Any]) -> list[dict[str, Any]]:
    texts = {name: lengths[name] for name in ("before", "after") if lengths.get(name)}
    tokens = {name: each for name, each in lengths.items() if each and name not in texts}
    charts = [histogram("length of the documents", texts)]
    charts += [histogram(f"{name} of the documents kept", {name: each}) for name, each in tokens.items()]
    return [chart for chart in charts if chart]


def _languages(languages: Mapping[str, Any]) -> list[Row]:
    before, after = _part(languages, "before"), _part(languages, "after")
    names = sorted({*before, *after}, key=lambda name: (-_count(before, name), -_count(after, name), name))
    listed = [(name, _count(before, name), _count(after, name)) for name in names[:LANGUAGES]]
    if rest := names[LANGUAGES:]:
        sums = [sum(_count(each, name) for name in rest) for each in (before, after)]
        listed.append((f"{len(rest)} others", sums[0], sums[1]))
    most = max((max(counts) for _, *counts in listed), default=0)
    rows = []
    for name, old, new in listed:
        sides = [(old, "gray")] * bool(before) + [(new, "one")] * bool(after)
        words = " → ".join(f"{count:,}" for count, _ in sides)
        rows.append(_row(name, words, *([_bar(count, most, colour)] for count, colour in sides)))
    return rows


def _duplicates(kind: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One kind's figures, its cluster sizes as bars, and examples with what differs from the kept text."""
    sizes = {str(size): count for size, count in _part(found, "sizes").items() if count}
    ordered = sorted(sizes, key=lambda size: (int((re.findall(r"\d+", size) or ["0"])[0]), size))
    listed = [(size, sizes[size]) for size in ordered[:SIZES]]
    if rest := ordered[SIZES:]:
        listed.append((f"{rest[0]} and more", sum(sizes[size] for size in rest)))
    most = max((count for _, count in listed), default=0)
    examples = []
    for example in _list(found, "examples")[:EXAMPLES]:
        kept, removed = _part(example, "kept"), _list(example, "removed")
        text = _text(kept, "text")
        others = [
            (_text(each, "id"), each.get("similarity"), _other(text, _text(each, "text")))
            for each in removed[:EXAMPLES]
        ]
        more = len(removed[EXAMPLES:])
        examples.append(
            {"id": _text(kept, "id"), "text": marked(text, text)[0], "removed": others, "more": more}
        )
    bars = [_row(f"{size} documents", f"{count:,}", [_bar(count, most, "one")]) for size, count in listed]
    figures = {name: found.get(name) for name in ("clusters", "removed")}
    return {"kind": kind, **figures, "bars": bars, "examples": examples}


def _other(kept: str, text: str) -> list[Piece]:
    return [("skip", "the same text")] if text == kept else marked(kept, text)[1]


def _shares(sources: Sequence[Mapping[str, Any]]) -> list[Row]:
    listed = [(source, source["share"]) for source in sources if source.get("share") is not None]
    most = max((part for _, part in listed), default=0)
    rows = []
    for source, part in listed:
        note = source.get("licence") or "no licence stated"
        rows.append(_row(source.get("name"), share(part), [_bar(part, most, "one")], note=note))
    return rows


def _blend(blend: Mapping[str, Any]) -> list[Row]:
    """What was asked for beside what came out, each as shares of its own sum."""
    wanted, got = _part(blend, "wanted"), _part(blend, "got")
    wholes = sum(wanted.values()), sum(got.values())
    parts = [
        (name, (wanted.get(name) or 0) / (wholes[0] or 1), (got.get(name) or 0) / (wholes[1] or 1))
        for name in {**wanted, **got}
    ]
    most = max((max(old, new) for _, old, new in parts), default=0)
    return [
        _row(name, f"{share(old)} → {share(new)}", [_bar(old, most, "gray")], [_bar(new, most, "one")])
        for name, old, new in parts
    ]


def _sample(sample: Mapping[str, Any]) -> dict[str, Any]:
    before, after = _text(sample, "before"), _text(sample, "after")
    both = marked(before, after) if after else (marked(before, before)[0], [])
    names = {name: _text(sample, name) for name in ("id", "fate")}
    return {**names, "before": both[0], "after": both[1], "unchanged": before == after}


def _flat(figures: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, list[str]]]:
    """Nested figures as lines under a name each; what belongs together stands in one line."""
    for key, value in figures.items():
        name = above + str(key).replace("_", " ")
        if isinstance(value, Mapping) and any(isinstance(each, Mapping) for each in value.values()):
            yield from _flat(value, f"{name}, ")
        else:
            each = value if isinstance(value, list) else [value]
            yield name, [_line(one) for one in each] or ["none"]


def _line(value: Any) -> str:
    if isinstance(value, Mapping):
        return (
            ", ".join(f"{str(key).replace('_', ' ')}: {figure(each)}" for key, each in value.items())
            or "none"
        )
    return figure(value)


def _text(each: Mapping[str, Any], key: str) -> str:
    value = each.get(key)
    return "" if value is None else str(value)


def _bounded(pieces: Iterable[Piece], unseen: int) -> list[Piece]:
    """The pieces up to ``SHOWN`` characters; how many are left out, with ``unseen`` more, stands at the end."""
    kept: list[Piece] = []
    room = SHOWN
    for kind, text in pieces:
        taken = text if kind == "skip" else text[:room]
        if room:
            kept.append((kind, taken))
        if kind != "skip":
            room -= len(taken)
            unseen += len(text) - len(taken)
    return [*kept, ("skip", f" … {unseen:,} more characters")] if unseen else kept


def _median(bins: Sequence[tuple[float, float, int]]) -> str:
    """The median, as far as bins can tell: the count taken as even within its bin."""
    half = sum(count for _, _, count in bins) / 2
    for low, high, count in bins:
        if count >= half:
            return _short(float(f"{low + (high - low) * half / count:.3g}"))
        half -= count
    return "–"


def _decades(low: float, high: float) -> list[float]:
    """Round values for a logarithmic axis: 1, 10, 100, with 2 and 5 between them where there is room."""
    between = (1, 2, 5) if high / low < 2000 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [x for power in powers for factor in between if low <= (x := factor * 10.0**power) <= high]


def _short(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:,.4g}"


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else strict_json.dumps(value, ensure_ascii=False, default=str)
