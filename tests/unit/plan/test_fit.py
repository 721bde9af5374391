"""The fitter finds a known law again, its intervals hold the truth as often as they say, and it refuses what it cannot tell."""

from __future__ import annotations

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import approx_fprime, minimize

from pipeline.errors import UserError
from pipeline.plan.scaling import support
from pipeline.plan.scaling.fit import fit
from pipeline.plan.scaling.intervals import draw
from pipeline.plan.scaling.many import refit
from pipeline.plan.scaling.objective import Array, Design, objective
from pipeline.plan.scaling.own import losses, optima, study
from pipeline.plan.scaling.runs import Runs, read_runs
from pipeline.toolchains import ROOT
from tests.unit.plan.scale import TRUTH, design, measured, scale, write_runs

BUDGETS = [1e18, 3e18, 1e19, 3e19]


def test_without_noise_the_law_is_found_exactly() -> None:
    n, d = design([1e18, 1e19, 1e20, 1e21], 7)
    law = fit(n, d, measured(n, d, 0.0, 0)).law
    for name in ("e", "a", "b", "alpha", "beta"):
        assert getattr(law, name) == pytest.approx(getattr(TRUTH, name), rel=1e-3)


def test_the_gradient_is_that_of_the_objective() -> None:
    n, d = design(BUDGETS, 5)
    runs = Design.of(n, d, measured(n, d, 0.01, 1))
    for theta in ([0.1, 0.2, 0.3, 0.3, 0.4], [-1.0, -0.5, 0.4, 0.9, 0.1]):
        at = np.array(theta)
        numeric = approx_fprime(at, lambda point: objective(point, runs)[0], 1e-7)
        assert objective(at, runs)[1] == pytest.approx(numeric, rel=1e-4, abs=1e-4)


def test_a_few_wild_runs_hardly_move_the_law() -> None:
    n, d = design([1e18, 1e19, 1e20, 1e21], 6)
    loss = measured(n, d, 0.002, 2)
    loss[[3, 11, 17]] *= 1.15  # runs that diverged
    assert fit(n, d, loss).law.alpha == pytest.approx(TRUTH.alpha, rel=0.1)


def test_many_fits_at_once_are_those_of_l_bfgs() -> None:
    n, d = design(BUDGETS, 6)
    found = fit(n, d, measured(n, d, 0.003, 3))
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(n), np.full(len(n), 1 / len(n)), 12).astype(float)
    theta = refit(found.theta, found.design, np.ones_like(counts) * found.design.y, counts, 80)
    spread = theta.std(axis=0)
    for row, times in enumerate(counts):
        again = np.repeat(np.arange(len(n)), times.astype(int))
        runs = Design(
            found.design.n[again],
            found.design.d[again],
            found.design.y[again],
            found.design.mean_n,
            found.design.mean_d,
        )
        best = minimize(
            objective,
            found.theta,
            args=(runs,),
            jac=True,
            method="L-BFGS-B",
            options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-9},
        )
        assert objective(theta[row], runs)[0] <= best.fun * (1 + 1e-4)
        assert np.abs(theta[row] - best.x).max() < 0.1 * spread.max()


@pytest.mark.parametrize(("kind", "seeds"), [("parametric", 100), ("bca", 60)])
def test_intervals_hold_the_truth_as_often_as_they_say(kind: str, seeds: int) -> None:
    n, d = design(BUDGETS, 5)
    far = BUDGETS[-1] * 10
    truth = (TRUTH.alpha, TRUTH.beta, *TRUTH.optimum(far), TRUTH.loss(*TRUTH.optimum(far)))
    held = np.zeros(len(truth))
    for seed in range(seeds):
        found = fit(n, d, measured(n, d, 0.003, seed), starts=1)
        drawn = draw(found, kind, 0.9, 200, seed)
        assert drawn is not None
        runs = found.design

        def lowest(theta: Array, runs: Design = runs) -> Array:
            best = optima(theta, runs, far, 6.0)
            rows = [
                losses(theta[row : row + 1], runs, *best[row][:, None])[0, 0] for row in range(len(theta))
            ]
            return np.array(rows)

        statistics = (
            lambda theta: theta[:, 3],
            lambda theta: theta[:, 4],
            lambda theta, runs=runs: optima(theta, runs, far, 6.0)[:, 0],
            lambda theta, runs=runs: optima(theta, runs, far, 6.0)[:, 1],
            lowest,
        )
        for place, statistic in enumerate(statistics):
            ends = drawn.interval(statistic)
            held[place] += ends is not None and ends[0] <= truth[place] <= ends[1]
    tolerance = 3.3 * math.sqrt(0.9 * 0.1 / seeds)  # of a binomial share, once in a thousand
    assert np.abs(held / seeds - 0.9).max() <= tolerance, held / seeds


def test_fewer_points_than_coefficients_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    n, d = design([1e18, 1e19], 2)
    file = write_runs(tmp_path / "runs.csv", n, d, measured(n, d, 0.0, 0))
    assert scale("train", "--runs", str(file), "--flops", "1e20") == 2
    assert "4 runs cannot tell the 5 coefficients" in capsys.readouterr().err


def test_runs_of_one_size_are_refused() -> None:
    n, d = np.full(8, 1e8), np.geomspace(1e9, 1e11, 8)
    with pytest.raises(UserError, match="1 different sizes"):
        fit(n, d, measured(n, d, 0.0, 0))


def test_as_many_runs_as_coefficients_give_a_law_without_an_interval(tmp_path: Path) -> None:
    n = np.array([1e7, 3e7, 1e8, 2e8, 5e8])
    d = np.array([1e9, 8e9, 2e9, 3e10, 1e10])
    seen, held = read_runs(write_runs(tmp_path / "runs.csv", n, d, measured(n, d, 0.0, 0)))
    own = study("runs.csv", seen, held, "parametric", 0.9, 100, 0)
    assert own.draws is None
    assert own.errors == ()
    assert any("as many runs as coefficients" in warning for warning in own.warnings(None))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("parameters,tokens,loss\n1e7,1e9,nan\n", "runs.csv:2: loss is 'nan'; expected a positive number"),
        ("parameters,tokens,loss\n1e7,1e9,3.1\n1e7,-2e9,3\n", "runs.csv:3: tokens is '-2e9'"),
        (
            "parameters,tokens,loss\n1e300,1e9,3.1\n",
            "runs.csv:2: parameters is '1e300'; expected a number from 1 to",
        ),
        (
            "parameters,tokens,loss\n1e7,1e21,3.1\n",
            "runs.csv:2: tokens is '1e21'; expected a number from 1 to 1e+20",
        ),
        (
            "parameters,tokens,loss\n" + "".join(f"{n}e6,{d}e8,3.0\n" for n in (1, 2, 4) for d in (1, 3, 9)),
            "all 9 runs have the same loss (3)",
        ),
        ("parameters,tokens,loss\n1e7,,3.1\n", "runs.csv:2: tokens is empty"),
        ("parameters,tokens\n1e7,1e9\n", "runs.csv:1: the column 'loss' is missing"),
        ("parameters,tokens,loss,los\n1,1,1,1\n", "runs.csv:1: unknown column 'los'; did you mean 'loss'?"),
        ("parameters,tokens,loss,loss\n1,1,1,1\n", "the column 'loss' is there twice"),
        ("parameters,tokens,loss\n1e7,1e9\n", "runs.csv:2: has 2 cells, and the header 3"),
        ("parameters,tokens,loss\n", "holds no rows"),
        ("parameters,tokens,loss,flops\n1e7,1e9,3,1e9\n", "runs.csv:2: flops is 1e-07 times"),
        ("parameters,tokens,loss,held_out\n1e7,1e9,3,1\n", "every run is held out"),
    ],
)
def test_nonsense_in_runs_names_file_line_and_column(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.csv"
    file.write_text(text, encoding="utf-8")
    assert scale("train", "--runs", str(file)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_missing_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scale("train", "--runs", str(tmp_path / "none.csv")) == 2
    assert "none.csv: cannot be read: No such file" in capsys.readouterr().err


def test_held_out_runs_are_predicted_and_never_fitted(tmp_path: Path) -> None:
    n, d = design([*BUDGETS, 1.2e20], 5)
    loss = measured(n, d, 0.002, 5)
    alone = fit(n[:20], d[:20], loss[:20]).law
    loss[-5:] *= 2  # nothing of this may reach the fit
    seen, held = read_runs(write_runs(tmp_path / "runs.csv", n, d, loss, held_out=5))
    own = study("runs.csv", seen, held, "parametric", 0.9, 200, 0)
    assert own.fit.law.alpha == pytest.approx(alone.alpha, rel=1e-3)
    assert len(own.predictions) == 5
    for run in own.predictions:
        assert run.error == pytest.approx(-0.5, abs=0.02)
        assert run.interval is not None
        assert run.interval[1] < run.measured


def test_held_out_intervals_hold_runs_that_follow_the_law() -> None:
    n, d = design([*BUDGETS, 1.2e20], 5)
    held = total = 0
    for seed in range(8):
        loss = measured(n, d, 0.003, seed)
        names = tuple(map(str, range(len(n))))
        whole = Runs(n, d, loss, 6 * n * d, 6 * n * d, np.full(len(n), np.nan), names)
        own = study(
            "x", whole.take(list(range(20))), whole.take(list(range(20, 25))), "parametric", 0.9, 200, seed
        )
        held += sum(
            each.interval[0] <= each.measured <= each.interval[1] for each in own.predictions if each.interval
        )
        total += len(own.predictions)
    assert (
        0.78 <= held / total <= 0.99
    )  # runs of one seed share a fit, so the share is looser than a binomial's


def test_errors_are_those_of_left_out_runs_and_beat_no_data(tmp_path: Path) -> None:
    n, d = design(BUDGETS, 5)
    loss = measured(n, d, 0.003, 7)
    seen, held = read_runs(write_runs(tmp_path / "runs.csv", n, d, loss))
    own = study("runs.csv", seen, held, "parametric", 0.9, 100, 0)
    by_split = {each.split: each for each in own.errors}
    assert by_split["one budget out"].runs == 20
    assert by_split["largest compute out"].runs == 5
    kept = fit(n[:15], d[:15], loss[:15]).law
    off = [abs(kept.loss(n[row], d[row]) / loss[row] - 1) for row in range(15, 20)]
    assert by_split["largest compute out"].mean == pytest.approx(np.mean(off), rel=0.02)
    in_sample = np.abs(np.exp(own.fit.residuals) - 1).mean()
    assert by_split["largest compute out"].mean > in_sample


def test_residuals_with_a_pattern_are_told_and_noise_is_not() -> None:
    n, d = design([1e18, 1e19, 1e20, 1e21], 7)
    bent = measured(n, d, 0.001, 8) * np.exp(0.01 * (np.log(n / n.mean())) ** 2 * np.log(d / d.mean()))
    assert any("pattern" in each for each in support.of_fit(fit(n, d, bent)))
    told = sum(
        any("pattern" in each for each in support.of_fit(fit(n, d, measured(n, d, 0.003, seed), starts=1)))
        for seed in range(20)
    )
    assert told <= 2


def test_an_extrapolation_too_far_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    n, d = design(BUDGETS, 5)
    file = write_runs(tmp_path / "runs.csv", n, d, measured(n, d, 0.003, 9))
    assert scale("train", "--runs", str(file), "--flops", "3e22", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert any("1e+03 times the largest run" in each for each in found["warnings"])
    assert scale("train", "--runs", str(file), "--flops", "1e20", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert not any("times the largest run" in each for each in found["warnings"])
    mine = found["laws"][0]
    assert mine["law"] == "your runs, parametric"
    assert mine["parameters_band"][0] < TRUTH.optimum(1e20)[0] < mine["parameters_band"][1]


RUN = """
import argparse, sys
from pipeline.plan.scaling import commands
parser = argparse.ArgumentParser()
commands.add(parser.add_subparsers(required=True))
assert not {"numpy", "scipy", "matplotlib", "omegaconf"} & set(sys.modules), "the options must be there at once"
options = parser.parse_args(sys.argv[1:])
sys.exit(options.call(options))
"""


def processor_seconds(*arguments: str) -> tuple[float, str]:
    """What Python took of the processors for these arguments, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_the_answer_takes_little_more_of_a_processor_than_loading_scipy(tmp_path: Path) -> None:
    n, d = design(BUDGETS, 5)
    file = write_runs(tmp_path / "runs.csv", n, d, measured(n, d, 0.003, 9))
    # Beside what any machine takes to load the library, in alternation: seconds alone say how busy a machine is.
    ratios = []
    for _ in range(3):
        loading, _ = processor_seconds("-c", "import scipy.optimize")
        answering, said = processor_seconds("-c", RUN, "train", "--runs", str(file), "--flops", "1e20")
        assert "your runs, parametric" in said
        ratios.append(answering / loading)
    assert min(ratios) < 2.5, ratios
