"""The plan of a recipe's needs, for people: a table, what does not fit with what does, and derivations on request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.plan.needs import Needs, line_of
from pipeline.plan.quantity import Quantity, words
from pipeline.plan.serving.deployment import Deployment

HEAD = ("step", "layout", "memory", "of", "verdict", "token/s each", "time", "GPU-hours", "money")
LEFT = (0, 1, 4)  # columns of words
NOTHING = "-"


def lines(found: Sequence[Needs], served: Deployment | None, explain: bool) -> Iterator[str]:
    """The table and what belongs to it; with ``explain``, the derivation of every number after it."""
    for place, steps in _by_place(found):
        yield ""
        yield f"on {place}"
        yield from _table([_row(each) for each in steps])
    for each in found:
        if each.fault is not None:
            yield f"{each.stage} cannot be spread so: {each.fault}"
            yield from (
                ["what can, quickest first:", *map(line_of, each.alternatives)] if each.alternatives else []
            )
        elif not each.feasible:
            yield f"{each.stage} does not fit{'. What does, quickest first:' if each.alternatives else ''}"
            yield from (line_of(alternative) for alternative in each.alternatives)
    if served is not None:
        yield from ([] if found else [""])
        yield f"served on {served.words}"
    yield from _notes(found)
    if explain:
        for each in found:
            yield ""
            yield f"{each.stage}: {each.layout.words(each.place.gpus > 0)}"
            seen: set[Quantity] = set()
            for quantity in each.quantities():
                yield from quantity.derivation(1, seen)
        if served is not None:
            yield ""
            yield f"served on {served.words}"
            once: set[Quantity] = set()
            for quantity in served.quantities:
                yield from quantity.derivation(1, once)


def _by_place(found: Sequence[Needs]) -> list[tuple[str, list[Needs]]]:
    places: dict[str, list[Needs]] = {}
    for each in found:
        said = each.place.words()
        if each.place.assumed:
            said += ", as named" if each.place.named else ", which the recipe is made for and are not at hand"
        places.setdefault(said, []).append(each)
    return list(places.items())


def _row(each: Needs) -> tuple[str, ...]:
    def said(quantity: Quantity | None) -> str:
        return NOTHING if quantity is None else words(quantity.value, quantity.unit)

    rate = each.prediction.tokens_per_gpu if each.prediction and not each.measured else None
    room = each.verdict.share.inputs[1] if each.verdict else None
    return (
        each.stage,
        _layout(each),
        said(each.memory),
        said(room),
        each.verdict.word if each.verdict else "impossible" if each.fault else "not known",
        NOTHING if rate is None else f"{rate.value:,.0f}",
        said(each.time),
        NOTHING if each.gpu_hours is None else f"{each.gpu_hours.value:,.3g}",
        said(each.money),
    )


def _layout(each: Needs) -> str:
    return each.layout.words(each.place.gpus > 0) + (f", {each.work.peft}" if each.work.adapted else "")


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    kept = [place for place in range(len(HEAD)) if any(row[place] != NOTHING for row in rows)]
    table = [tuple(row[place] for place in kept) for row in (HEAD, *rows)]
    widths = [max(len(row[place]) for row in table) for place in range(len(kept))]
    for row in table:
        cells = [
            text.ljust(width) if column in LEFT else text.rjust(width)
            for text, width, column in zip(row, widths, kept, strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _notes(found: Sequence[Needs]) -> Iterator[str]:
    """What the numbers rest on, each thing once: speed and its limits, sequences, money."""
    gpus = any(each.place.gpu for each in found)
    speeds: list[str] = []
    limits: list[str] = []
    lengths: list[str] = []
    money: list[str] = []
    for each in found:
        if each.measured and each.time is not None:
            speeds.append(f"time: {each.time.source}; set-up and looks at the validation loss included")
        elif each.prediction is not None and each.prediction.error is not None:
            error, worst = each.prediction.error, each.prediction.worst
            largest = f", largest {worst.value:.0%}" if worst is not None else ""
            speeds.append(f"speed: a model with a mean error of {error.value:.1%}{largest} on {error.source}")
            limits += [f"  {limit}" for limit in each.prediction.limits]
        elif each.fault is None and each.verdict is None:
            speeds.append("time and room: nothing is known of machines without GPUs elsewhere")
        elif each.verdict is not None and not each.place.gpus:
            speeds.append(
                "time: nothing is known of this machine; --calibrate runs two real steps of each stage"
            )
        elif each.verdict is not None:
            speeds.append("time: the kind of GPU is not known; name it, e.g. --gpus 8xH100-80GB")
        if each.tokens is not None:
            length = each.tokens.inputs[-1]
            lengths.append(f"a sequence in {each.stage}: {length.value:,.0f} tokens ({length.source})")
        if each.money is not None:
            money.append(f"money: {each.money.source}")
        elif each.gpu_hours is not None:
            money.append("money: configs/prices.yaml has no price of this kind of GPU")
    sizes = ["memory: GB are 1e9 bytes; a GPU's own figure is in GiB"] if gpus else []
    yield from dict.fromkeys([*speeds, *limits, *lengths, *sizes, *money])
