"""The nearest layouts that fit, quickest first.

    for found in search.nearest(shape, layout, work, gpu, most_gpus=64):
        print(found.verdict.word, found.prediction.step, found.changes)

Near means: with the same GPUs and the same work; else the same GPUs and less work (bf16 weights, adapters); else the same
work on the fewest more GPUs; else less work on more GPUs.  Of each of these ways the quickest layouts are kept, those that fit with room before those that
are tight, and of two whose times differ by less than the model's own error the one that changes less.  All are ranked by
predicted step time, the global batch being the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.plan.hardware import Gpu
from pipeline.plan.quantity import Quantity
from pipeline.plan.shapes.shape import Shape
from pipeline.plan.training import memory, speed, verdict
from pipeline.plan.training.efficiency import Efficiency, load
from pipeline.plan.training.engines import engine, layouts, works
from pipeline.plan.training.layout import Layout, Work

MOST = 16  # times as many GPUs are looked at, unless told otherwise


@dataclass(frozen=True)
class Change:
    """A setting that differs, by its name in :class:`Layout` or :class:`Work`."""

    setting: str
    was: object
    now: object


@dataclass(frozen=True)
class Candidate:
    """A layout that fits: what it changes, what it needs, how quick it is."""

    layout: Layout
    work: Work
    changes: tuple[Change, ...]
    need: memory.Need
    verdict: verdict.Verdict
    prediction: speed.Prediction

    @property
    def memory(self) -> Quantity:
        """Bytes on the fullest GPU."""
        return self.need.total

    @property
    def time(self) -> Quantity:
        """Seconds of a step."""
        return self.prediction.step

    def words(self) -> str:
        """The changes in one line."""
        return ", ".join(f"{change.setting} {change.was} -> {change.now}" for change in self.changes)


def nearest(
    shape: Shape,
    layout: Layout,
    work: Work,
    gpu: Gpu,
    *,
    engine_name: str = "any",
    most_gpus: int | None = None,
    limit: int = 5,
    efficiency: Efficiency | None = None,
) -> list[Candidate]:
    """Layouts that fit, near to one that does not; empty where none does up to ``most_gpus`` (16 times as many).

    Raises :class:`UserError` for an unknown engine, less than one GPU, and a precision that the GPU does not have.
    """
    engine(engine_name)
    work.check()
    if layout.gpus < 1:
        raise UserError(f"gpus = {layout.gpus}: give at least 1")
    if most_gpus is not None and most_gpus < 1:
        raise UserError(f"at most {most_gpus} GPUs: give at least 1")
    found = efficiency or load()
    ways: list[list[tuple[float, Layout, Work]]] = []
    own, *lesser = works(work, engine_name)
    ways.append(_fitting(shape, layout, own, gpu, layout.gpus, engine_name, found))
    if not ways[0] or _share_of(shape, ways[0][0], gpu) > verdict.COMFORTABLE:
        for less in lesser:
            ways.append(_fitting(shape, layout, less, gpu, layout.gpus, engine_name, found))
        bound = most_gpus if most_gpus is not None else MOST * layout.gpus
        for gpus in _more(layout.gpus, bound, gpu.gpus_per_node):
            more = _fitting(shape, layout, own, gpu, gpus, engine_name, found)
            ways += [more] * bool(more)
            if any(_share_of(shape, each, gpu) <= verdict.COMFORTABLE for each in more[:1]):
                break
        else:
            # The same work fits on none of them: less work on as many as that takes.
            if not any(ways):
                ways += _lesser(shape, layout, lesser, gpu, bound, engine_name, found)
    kept = _share(ways, limit)
    kept.sort(key=lambda each: each[0])
    return [_candidate(shape, layout, work, gpu, chosen, used, found) for _, chosen, used in kept]


def _lesser(
    shape: Shape, layout: Layout, lesser: list[Work], gpu: Gpu, bound: int, name: str, efficiency: Efficiency
) -> list[list[tuple[float, Layout, Work]]]:
    """Of each lesser work the layouts on the fewest GPUs on which it fits."""
    ways = []
    for less in lesser:
        for gpus in _more(layout.gpus, bound, gpu.gpus_per_node):
            way = _fitting(shape, layout, less, gpu, gpus, name, efficiency)
            if way:
                ways.append(way)
                break
    return ways


def _more(gpus: int, bound: int, node: int) -> Iterator[int]:
    """Larger numbers of GPUs: doubled, and powers of two; in whole machines beyond one."""
    doubled = {gpus * 2**power for power in range(1, 1 + max(1, bound // gpus).bit_length())}
    powers = {2**power for power in range(1, 1 + bound.bit_length()) if 2**power > gpus}
    sizes = {size if size < node else -(-size // node) * node for size in doubled | powers if size <= bound}
    yield from sorted(sizes)


def _share(ways: list[list[tuple[float, Layout, Work]]], limit: int) -> list[tuple[float, Layout, Work]]:
    """The best of each way, in turns, until there are enough."""
    kept: list[tuple[float, Layout, Work]] = []
    for turn in range(limit):
        kept += [way[turn] for way in ways if turn < len(way)][: limit - len(kept)]
    return kept


def _fitting(
    shape: Shape, start: Layout, work: Work, gpu: Gpu, gpus: int, name: str, efficiency: Efficiency
) -> list[tuple[float, Layout, Work]]:
    """Seconds of a step and layout of those of so many GPUs that fit, quickest first; tight ones where no other does."""
    room = verdict.room(gpu)
    comfortable: list[tuple[float, Layout, Work]] = []
    tight: list[tuple[float, Layout, Work]] = []
    for layout in layouts(start, work, shape.depth, min(8, speed.domain(gpu)), gpus, name):
        if layout.fault(shape, work):
            continue
        _, items = memory.fullest(shape, layout, work)
        share = sum(items.values()) / room
        if share > 1:
            continue
        parts = speed.step_parts(shape, layout, work, gpu, efficiency.constants)
        (comfortable if share <= verdict.COMFORTABLE else tight).append((sum(parts.values()), layout, work))
    same = efficiency.held_out["dense"]["mean"]

    def rank(each: tuple[float, Layout, Work]) -> tuple[float, int, float]:
        changed = len(_changes(start, each[1]))
        return round(math.log(each[0]) / same), changed, each[0]

    return sorted(comfortable or tight, key=rank)


def _share_of(shape: Shape, each: tuple[float, Layout, Work], gpu: Gpu) -> float:
    return sum(memory.fullest(shape, each[1], each[2])[1].values()) / verdict.room(gpu)


def _candidate(
    shape: Shape, start: Layout, work: Work, gpu: Gpu, layout: Layout, used: Work, efficiency: Efficiency
) -> Candidate:
    need = memory.need(shape, layout, used)
    return Candidate(
        layout,
        used,
        (*_changes(work, used), *_changes(start, layout)),
        need,
        verdict.judge(need.total, gpu),
        speed.predict(shape, layout, used, gpu, efficiency),
    )


def _changes(was: Layout | Work, now: Layout | Work) -> tuple[Change, ...]:
    """Fields that differ."""
    old, new = vars(was), vars(now)
    return tuple(Change(name, old[name], new[name]) for name in old if old[name] != new[name])
