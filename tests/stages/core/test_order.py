"""The order of a run's examples: everybody's turn comes, whatever the sizes."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
import torch

from pipeline.engines.automodel.examples import Examples, OrderedExamples, run_order, spread


def of_lengths(lengths: list[int]) -> Examples:
    return Examples.of([([1] * n, [1] * n) for n in lengths])


def uneven(count: int) -> Examples:
    """Every example longer than the one before, so that the longest are known by their number."""
    return of_lengths([1 + n // 4 for n in range(count)])


@pytest.mark.parametrize(
    ("count", "batch", "steps"),
    [
        (1610, 128, 805),  # 64 epochs
        (1610, 256, 402),
        (1610, 512, 201),
        (63, 32, 63),
        (1000, 256, 125),
        (1000, 256, 3),  # less than an epoch
        (40, 4, 10),
        (7, 32, 21),  # fewer examples than a batch
        (31, 32, 62),
        (33, 32, 99),
        (1, 4, 3),
        (5, 5, 7),
        (9000, 64, 300),  # an epoch of more than one bucket
        (4097, 64, 129),
    ],
)
def test_every_example_is_visited_as_often_as_another(count: int, batch: int, steps: int) -> None:
    order = run_order(uneven(count), steps=steps, batch=batch, seed=1234)
    assert len(order) == steps * batch
    for end in {batch, steps * batch // 2 // batch * batch, steps * batch}:
        seen = Counter(order[:end])
        often = [seen[index] for index in range(count)]
        assert max(often) - min(often) <= 1
    if count >= batch:
        assert all(len(set(order[i : i + batch])) == batch for i in range(0, len(order), batch))


def test_what_a_short_run_leaves_out_is_chosen_by_chance_and_not_by_length() -> None:
    """Also what an epoch leaves for the next: the longest stood there, the same ones in every epoch."""
    made, left = uneven(1000), Counter[int]()
    for seed in range(40):
        left.update(set(range(1000)) - set(run_order(made, steps=3, batch=256, seed=seed)))
    longest, shortest = (sum(left[i] for i in part) for part in (range(768, 1000), range(232)))
    assert sum(left.values()) == 40 * 232
    assert 0.8 < longest / shortest < 1.25
    assert max(left.values()) < 25


def test_batches_hold_like_lengths_and_come_in_an_order_of_chance() -> None:
    made = uneven(4096)
    order = run_order(made, steps=64, batch=64, seed=0)
    lengths = made.lengths()
    batches = [[lengths[i] for i in order[start : start + 64]] for start in range(0, 4096, 64)]
    assert all(max(batch) - min(batch) <= 16 for batch in batches)
    firsts = [batch[0] for batch in batches]
    assert firsts != sorted(firsts)


def test_the_order_is_fixed_by_the_seed() -> None:
    made = uneven(100)
    order = run_order(made, steps=30, batch=8, seed=3)
    assert order == run_order(made, steps=30, batch=8, seed=3)
    assert order != run_order(made, steps=30, batch=8, seed=4)


def test_visits_are_counted(tmp_path) -> None:
    made = uneven(10)
    made.save(tmp_path / "train.safetensors", run_order(made, steps=2, batch=4, seed=0))
    stored = OrderedExamples(str(tmp_path / "train.safetensors"), group=1)
    assert stored.visits() == {"examples": 10, "visits": 8, "never_visited": 2}
    assert int(torch.bincount(stored.order, minlength=10).max()) == 1


def test_a_choice_is_evenly_spread() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 4) == [0, 1, 2]
    for count in range(1, 60):
        for wanted in range(1, 70):
            chosen = spread(count, wanted)
            assert len(set(chosen)) == len(chosen) == min(count, wanted)
            gaps = {b - a for a, b in pairwise(chosen)}
            assert not gaps or max(gaps) - min(gaps) <= 1
