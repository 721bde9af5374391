"""Coverage of repeated sampling, against exact fractions, exact expectations and published figures."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from scipy.optimize import nnls
from scipy.stats import binom

from pipeline.errors import UserError
from pipeline.plan.serving.samples import Problem, read
from pipeline.plan.serving.sampling import Curve, fit, flop_matched, ladder, pass_at, through
from tests.unit.plan.serving_tools import Verbs, verbs_fixture

verbs = pytest.fixture(verbs_fixture)


@settings(deadline=None)
@drawn(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_the_estimator_is_the_ratio_of_binomials(counts: tuple[int, int, int]) -> None:
    n, c, k = counts
    exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
    assert pass_at(n, c, k) == pytest.approx(float(exact), rel=1e-11, abs=1e-15)


@pytest.mark.parametrize("n", [10**6, 10**9, 10**12])
def test_the_estimator_neither_overflows_nor_cancels_for_many_samples(n: int) -> None:
    few = 1 - Fraction(n - n // 3, n) * Fraction(n - n // 3 - 1, n - 1)
    assert pass_at(n, n // 3, 2) == pytest.approx(float(few), rel=1e-12)
    assert pass_at(n, 1, 7) == pytest.approx(7 / n, rel=1e-12)
    # As many as 200,000 factors: with replacement the chance is (1 - 1e-6)^200000 to one part in a million.
    assert pass_at(10**12, 10**6, 200_000) == pytest.approx(
        -math.expm1(200_000 * math.log1p(-1e-6)), rel=1e-3
    )


@pytest.mark.parametrize(("p", "k"), [(0.03, 5), (0.5, 3), (0.001, 40), (0.9, 1)])
def test_the_estimator_has_no_bias(p: float, k: int) -> None:
    n = 50
    expected = sum(binom.pmf(c, n, p) * pass_at(n, c, k) for c in range(n + 1))
    assert expected == pytest.approx(1 - (1 - p) ** k, rel=1e-10)


def test_the_published_example_gives_its_constants() -> None:
    found = through((1, 0.159), (250, 0.56))
    assert (round(found.a, 3), round(found.b, 3)) == (-1.839, -0.209)
    assert found.coverage(250) == pytest.approx(0.56)
    assert found.samples_for(0.56) == pytest.approx(250)


@pytest.mark.parametrize(("inference_share", "factor"), [(0.16, 258), (0.79, 63), (22, 16)])
def test_flop_matched_factors_are_the_published_ones(inference_share: float, factor: int) -> None:
    assert round(flop_matched(14, 1 / inference_share)) == factor


def test_serving_alone_gives_the_ratio_of_sizes() -> None:
    assert flop_matched(14, 0.0) == 14


# ------------------------------------------------------------------------------------------------ the fit

TRUE = Curve(-1.839, -0.209)


def population() -> tuple[np.ndarray, np.ndarray]:
    """Chances of solving and how common they are, whose coverage is the true curve at every k up to 1024."""
    chances = np.append(np.geomspace(1e-6, 0.999, 400), 0.0)
    ks = np.unique(np.geomspace(1, 1024, 60).astype(int))
    rows = np.vstack([1 - (1 - chances) ** k for k in ks] + [1e3 * np.ones_like(chances)])
    target = np.append([TRUE.coverage(int(k)) for k in ks], 1e3)
    shares, _ = nnls(rows, target)
    assert np.abs(rows[:-1] @ shares - target[:-1]).max() < 2e-3, "the law is that of the population"
    return chances, shares / shares.sum()


def test_the_fit_recovers_known_constants_and_its_intervals_cover_them() -> None:
    chances, shares = population()
    covered, found = 0, []
    for seed in range(40):
        random = np.random.default_rng(seed)
        solved = random.binomial(512, random.choice(chances, 150, p=shares))
        one = fit([Problem(str(index), 512, int(count)) for index, count in enumerate(solved)], seed=seed)
        found.append((one.curve.a, one.curve.b))
        low, high = one.b_interval
        covered += low <= TRUE.b <= high
    a, b = np.mean(found, axis=0)
    assert a == pytest.approx(TRUE.a, abs=0.06)
    assert b == pytest.approx(TRUE.b, abs=0.015)
    # 95% of 40 are 38; fewer than 34 would happen once in 250 times.
    assert covered >= 34


def test_the_largest_number_of_samples_is_predicted_from_a_quarter_of_it() -> None:
    chances, shares = population()
    random = np.random.default_rng(3)
    solved = random.binomial(1024, random.choice(chances, 400, p=shares))
    found = fit([Problem(str(index), 1024, int(count)) for index, count in enumerate(solved)])
    assert found.left_out is not None
    k, measured, predicted = found.left_out
    assert k == 1024
    assert measured == pytest.approx(TRUE.coverage(1024), abs=0.06)
    assert predicted == pytest.approx(measured, abs=0.05)
    # The left-out point did not enter: a fit to the small k alone says the same.
    again = fit(
        [Problem(str(index), 1024, int(count)) for index, count in enumerate(solved)], steps=ladder(256)
    )
    assert predicted == pytest.approx(again.curve.coverage(1024), rel=1e-9)


def test_a_population_that_the_law_does_not_fit_is_warned_of() -> None:
    # All problems alike: coverage rises as 1 - (1 - p)^k, which no exp(a k^b) follows.
    random = np.random.default_rng(0)
    problems = [Problem(str(index), 400, int(random.binomial(400, 0.01))) for index in range(100)]
    found = fit(problems)
    assert any("do not extrapolate" in warning for warning in found.warnings)


def test_a_curve_that_does_not_grow_reaches_no_higher_coverage() -> None:
    assert Curve(-0.5, 0.0).samples_for(0.9) == math.inf
    assert Curve(-0.5, 0.1).samples_for(0.9) == math.inf


def test_the_ladder_ends_at_the_samples_there_are() -> None:
    assert ladder(250) == [1, 2, 4, 8, 16, 32, 64, 128, 250]
    assert ladder(256)[-2:] == [128, 256]
    assert ladder(1) == [1]


# ------------------------------------------------------------------------------------------------ nonsense

HEADER = "problem,samples,correct\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("problem,samples\na,3\n", ":1: there is no column correct or c"),
        ("", ":1: there is no column problem"),
        (HEADER, "there is no problem in it"),
        (HEADER + "a,10,3\nb,10,11\n", ":3: 11 correct of 10 samples"),
        (HEADER + "a,10,-1\n", ":2: -1 correct of 10"),
        (HEADER + "a,0,0\n", ":2: 0 samples"),
        (HEADER + "a,10,nan\n", ":2: correct is 'nan'"),
        (HEADER + "a,10,2.5\n", ":2: correct is '2.5'"),
        (HEADER + "a,,2\n", ":2: samples is ''"),
        (HEADER + "a,10\n", ":2: 2 values"),
        (HEADER + "a,10,2\n\na,10,3\n", ":4: the problem 'a' stands in line 2"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "passes.csv"
    file.write_text(text)
    with pytest.raises(UserError) as refused:
        read(str(file))
    assert f"{file}" in str(refused.value)
    assert told in str(refused.value)


def test_columns_may_be_named_n_and_c_and_stand_in_any_order(tmp_path: Path) -> None:
    file = tmp_path / "passes.csv"
    file.write_text("c,problem,n\n3,a,10\n")
    assert read(str(file)) == [Problem("a", 10, 3)]


def test_more_samples_than_a_problem_has_are_refused() -> None:
    problems = [Problem("a", 100, 30), Problem("b", 50, 3)]
    with pytest.raises(UserError, match="k = 64: the problem 'b' has 50 samples"):
        fit(problems, steps=[1, 8, 64])
    with pytest.raises(UserError, match="pass@11"):
        pass_at(10, 3, 11)


def test_fewer_points_than_a_curve_needs_are_refused() -> None:
    with pytest.raises(UserError, match=r"exp\(a k\^b\) has two constants"):
        fit([Problem("a", 2, 1), Problem("b", 2, 0)])


# ------------------------------------------------------------------------------------------------ the verb


def test_the_verb_weighs_a_small_model_sampled_often_against_a_large_one(verbs: Verbs) -> None:
    found = verbs.json(
        "sampling", "--points", "1:0.159,250:0.56", "--ratio", "14", "--inference-per-pretraining", "0.16",
        "--large-coverage", "0.43", "--target", "0.7",
    )["by name"]  # fmt: skip
    curve = through((1, 0.159), (250, 0.56))
    assert found["FLOP-matched samples"] == pytest.approx(257.75)
    assert found["lead of the small model"] == pytest.approx(curve.coverage(257.75) - 0.43)
    assert curve.coverage(found["samples that equal it"]) == pytest.approx(0.43)
    assert curve.coverage(found["samples for 70%"]) == pytest.approx(0.7)


def test_the_verb_prints_the_error_left_out_beside_predictions(verbs: Verbs, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    file, picture = tmp_path / "passes.csv", tmp_path / "coverage.png"
    lines = [
        f"p{index},256,{random.binomial(256, chance)}" for index, chance in enumerate(random.beta(0.3, 2, 80))
    ]
    file.write_text(HEADER + "\n".join(lines))
    status, out, error = verbs("sampling", str(file), "--at", "1000", "--plot", str(picture))
    assert status == 0, error
    assert "when k = 256 was left out" in next(line for line in out.splitlines() if "at 1000 samples" in line)
    assert "95%:" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "give a file of pass counts"),
        ("nowhere.csv", "nowhere.csv: cannot be read"),
        ("--points 1:0.2", "give two points"),
        ("--points 1:0.2,1:0.3", "give two points at different k"),
        ("--points 1:0.2,8:1.3", "coverage above 0 and below 1"),
        ("--points 1:0.9,250:0.2", "coverage at 250 samples (0.2) must be above that at 1 (0.9)"),
        ("--points 250:0.5,1:0.5", "coverage at 250 samples (0.5) must be above that at 1 (0.5)"),
        ("--points 1e10:0.1,1.0000000001e10:0.9", "points this steep"),
        ("--points 1:0.2,8:0.5 --at 1e300", "--at 1e+300: must be from 1 to 1e+12 samples"),
        ("--points 1:0.2,8:0.5 --large-coverage 0.4", "--large-coverage needs --ratio"),
        ("--ratio 1e300", "--ratio 1e+300: must be from 0 to 1e+09"),
        ("--points 1;0.2", "write two points as"),
        ("--points 1:0.2,8:0.5 --target 1", "--target 1: must be above 0 and below 1"),
        ("--points 1:0.2,8:0.5 --at 2.5", "--at 2.5: must be a whole number"),
        ("--ratio 1", "must be larger"),
        ("--ratio 14 --target 0.5", "need a file of pass counts"),
        ("--ratio 14 --inference-per-pretraining 0", "--inference-per-pretraining 0: must be more than zero"),
    ],
)
def test_nonsense_gives_one_clear_line_and_exit_status_2(verbs: Verbs, words: str, told: str) -> None:
    status, out, error = verbs("sampling", *words.split())
    assert (status, out) == (2, "")
    assert told in error
    assert error.count("\n") == 1
