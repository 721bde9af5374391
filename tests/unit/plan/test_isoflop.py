"""Parabolas find the minima that are there, say where there is none, and carry a power law with honest intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.plan.quantity import given
from pipeline.plan.scaling import isoflop, plot, support
from pipeline.plan.scaling.objective import Array
from pipeline.plan.scaling.own import study
from pipeline.plan.scaling.runs import Runs
from tests.unit.plan.scale import TRUTH, design, measured, scale, write_runs

BUDGETS = [1e18, 3e18, 1e19, 3e19]


def runs_of(n: Array, d: Array, loss: Array) -> Runs:
    nothing = np.full(len(n), np.nan)
    return Runs(n, d, loss, 6 * n * d, 6 * n * d, nothing, tuple(map(str, range(len(n)))))


def bowl(budgets: list[float], sizes: int = 5) -> tuple[Array, Array, Array]:
    """Runs whose loss is exactly a parabola about N = 0.1 C^0.5, as deep as 40 C^-0.06."""
    n, d, loss = [], [], []
    for flops in budgets:
        for off in np.linspace(-1, 1, sizes):
            n.append(0.1 * flops**0.5 * math.exp(off))
            d.append(flops / 6 / n[-1])
            loss.append(40 * flops**-0.06 + 0.1 * off**2)
    return np.array(n), np.array(d), np.array(loss)


def test_exact_parabolas_give_the_exact_power_laws() -> None:
    found = isoflop.analyse(runs_of(*bowl(BUDGETS)))
    assert found.tokens is not None
    assert found.loss is not None
    assert found.tokens.exponent == pytest.approx(0.5)
    assert found.tokens.coefficient == pytest.approx(1 / 0.6)  # D = C / (6 x 0.1 C^0.5)
    assert found.loss.exponent == pytest.approx(-0.06)
    assert found.optimum(1e22)[0] == pytest.approx(0.1 * 1e11)


def test_minima_of_a_parametric_law_are_near_its_closed_form() -> None:
    n, d = design(BUDGETS, 9, spread=0.8)
    for each in isoflop.analyse(runs_of(n, d, measured(n, d, 0.0, 0))).parabolas:
        assert each.parameters == pytest.approx(TRUTH.optimum(each.flops)[0], rel=0.05)
        assert each.loss == pytest.approx(TRUTH.loss(*TRUTH.optimum(each.flops)), rel=1e-3)


def test_runs_of_like_compute_share_a_budget() -> None:
    n, d, loss = bowl(BUDGETS)
    wobble = np.random.default_rng(0).uniform(0.96, 1.04, len(n))
    assert [len(group) for group in isoflop.budgets(runs_of(n, d * wobble, loss))] == [5, 5, 5, 5]


def test_a_minimum_outside_of_the_sizes_does_not_count() -> None:
    n, d, loss = bowl([*BUDGETS, 1e20])
    low = np.arange(20, 25)
    n[low], loss[low] = n[low] / 20, loss[low] + 0.1 * (np.log(20) ** 2)  # all far too small
    n[low] = np.sort(n[low])
    loss[low] = np.linspace(3.4, 2.9, 5) + np.array([0, -0.01, -0.015, -0.01, 0])
    d[low] = 1e20 / 6 / n[low]
    runs = runs_of(n, d, loss)
    found = isoflop.analyse(runs)
    assert "above the largest size" in (found.parabolas[-1].fault or "")
    assert len(found.counting) == 4
    assert any("1e+20 FLOP does not count" in each for each in support.of_runs(runs, found))
    assert found.tokens is not None
    assert found.tokens.exponent == pytest.approx(0.5)


def test_a_parabola_that_opens_downwards_and_a_budget_of_two_runs_are_told() -> None:
    n, d, loss = bowl(BUDGETS)
    loss[:5] = 2 * loss[2] - loss[:5]
    keep = [row for row in range(20) if row not in (16, 17, 18)]
    runs = runs_of(n, d, loss).take(keep)
    found = isoflop.analyse(runs)
    told = list(support.of_runs(runs, found))
    assert any("does not open upwards" in each for each in told)
    assert any("fewer than 3 sizes (2 runs)" in each for each in told)
    assert any("2 budgets with a minimum" in each for each in told)


def test_one_budget_gives_no_power_law() -> None:
    found = isoflop.analyse(runs_of(*bowl([1e19])))
    assert len(found.counting) == 1
    assert found.tokens is None


def test_intervals_of_the_power_law_hold_the_truth_as_often_as_they_say() -> None:
    n, d, exact = bowl(BUDGETS)
    held = np.zeros(2)
    seeds = 200
    for seed in range(seeds):
        loss = exact + 0.01 * np.random.default_rng(seed).standard_normal(len(n))
        draws = isoflop.analyse(runs_of(n, d, loss), 200, seed).draws
        assert draws is not None
        far = math.log(1e21)
        for place, (values, truth) in enumerate(
            ((draws[:, 1], 0.5), (draws[:, 0] + draws[:, 1] * far, math.log(1 / 0.6) + 0.5 * far))
        ):
            low, high = np.quantile(values, [0.05, 0.95])
            held[place] += low <= truth <= high
    assert np.abs(held / seeds - 0.9).max() <= 3.3 * math.sqrt(0.9 * 0.1 / seeds), held / seeds


def test_repeats_and_another_flop_count_are_told() -> None:
    n, d, loss = bowl(BUDGETS)
    runs = Runs(n, d, loss, 7 * n * d, 7 * n * d, np.full(len(n), 6.0), tuple(map(str, range(len(n)))))
    told = list(support.of_runs(runs, isoflop.analyse(runs)))
    assert any("saw their data 6 times" in each for each in told)
    assert any("7 x parameters x tokens" in each for each in told)
    own = study("x", runs, runs.take([]), "parametric", 0.9, 60, 0)
    for found in own.optima(given("C", 1e20, "FLOP")):
        assert 7 * found.parameters.value * found.tokens.value == pytest.approx(1e20)


def test_the_picture_of_the_runs_shows_points_parabolas_and_the_line_of_optima(tmp_path: Path) -> None:
    n, d = design([*BUDGETS, 1e20], 5)
    whole = runs_of(n, d, measured(n, d, 0.002, 1))
    own = study("runs.csv", whole.take(list(range(20))), whole.take([22]), "parametric", 0.9, 60, 0)
    curves, optima = plot.figure(None, own).axes
    assert (curves.get_xlabel(), curves.get_ylabel()) == (
        "model size N (parameters)",
        "loss (nats per token)",
    )
    assert (curves.get_xscale(), curves.get_yscale()) == ("log", "log")
    texts = [text.get_text() for text in curves.get_legend().get_texts()]
    assert texts == [
        "1e+18 FLOP",
        "3e+18 FLOP",
        "1e+19 FLOP",
        "3e+19 FLOP",
        "optimum of each budget",
        "held-out run, measured",
        "held-out run, predicted",
    ]
    assert curves.get_legend().get_title().get_text() == "training compute"
    assert "minima of your runs" in [text.get_text() for text in optima.get_legend().get_texts()]
    assert (optima.get_xlabel(), optima.get_ylabel()) == (
        "training compute C (FLOP)",
        "compute-optimal size N (parameters)",
    )
    file = write_runs(tmp_path / "runs.csv", n, d, whole.loss, held_out=5)
    assert scale("train", "--runs", str(file), "--plot", str(tmp_path / "own.svg")) == 0
    assert "held-out run, measured" in (tmp_path / "own.svg").read_text(encoding="utf-8")
