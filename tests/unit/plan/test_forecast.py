"""Loss from compute and accuracy from loss: a known chain is found again, errors are of points left out, too few are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from pipeline.plan.scaling import downstream, forecast_plot
from pipeline.plan.scaling.downstream import Chain
from tests.unit.plan.scale import scale

TRUE = Chain(p=6.7, q=-0.25, k=6.0, m=0.9, chance=0.25, ceiling=1.0)


def points(file: Path, noise: float = 0.0, seed: int = 0, count: int = 9) -> Path:
    """Models of 6e18 to 1e22 FLOP, and three of unknown compute whose accuracy is high (as Llama 2's were for Llama 3)."""
    rng = np.random.default_rng(seed)
    lines = ["name,flops,nll,accuracy"]
    for place, flops in enumerate(np.geomspace(6e18, 1e22, count)):
        nll = TRUE.nll(flops) + noise * rng.standard_normal()
        accuracy = min(1.0, TRUE.accuracy(nll) + noise * rng.standard_normal())
        lines.append(f"m{place},{flops:.8g},{nll:.8f},{accuracy:.8f}")
    lines += [f"other{nll},,{nll},{TRUE.accuracy(nll):.8f}" for nll in (0.3, 0.5, 0.7)]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_without_noise_the_chain_is_found_exactly(tmp_path: Path) -> None:
    found = downstream.fit_chain(downstream.read_points(points(tmp_path / "points.csv")), 0.25, 1.0)
    for name in ("p", "q", "k", "m"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-4)


def test_the_forecast_is_the_sigmoid_of_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = points(tmp_path / "points.csv")
    arguments = ("--points", str(file), "--flops", "3.8e25", "--chance", "0.25", "--bootstrap", "50")
    assert scale("forecast", *arguments, "--json") == 0
    found = json.loads(capsys.readouterr().out)["forecast"]
    nll = 6.7 - 0.25 * math.log10(3.8e25)
    assert found["nll"]["value"] == pytest.approx(nll, rel=1e-4)
    assert found["accuracy"]["value"] == pytest.approx(
        0.25 + 0.75 / (1 + math.exp(6 * (nll - 0.9))), rel=1e-4
    )
    assert scale("forecast", *arguments, "--explain") == 0
    said = capsys.readouterr().out
    assert "chance + (ceiling - chance) / (1 + exp(k (NLL - m)))" in said
    assert "times the largest point" in said


def test_chance_and_ceiling_are_settings_that_bound_the_forecast(tmp_path: Path) -> None:
    read = downstream.read_points(points(tmp_path / "points.csv"))
    chain = downstream.fit_chain(read, 0.25, 1.0)
    assert chain.accuracy(50.0) == pytest.approx(0.25)
    assert chain.accuracy(-50.0) == pytest.approx(1.0)
    assert downstream.fit_chain(read, 0.0, 0.98).accuracy(50.0) == pytest.approx(0.0)


def test_errors_are_those_of_points_that_no_fit_has_seen(tmp_path: Path) -> None:
    read = downstream.read_points(points(tmp_path / "points.csv", noise=0.02, seed=3))
    single, largest = downstream.errors(read, 0.25, 1.0)
    assert single.points == 9
    chain = downstream.fit_chain(read.without(8), 0.25, 1.0)
    nll = chain.nll(read.flops[8])
    assert largest.nll == pytest.approx(abs(nll / read.nll[8] - 1))
    assert largest.accuracy == pytest.approx(abs(chain.accuracy(nll) - read.accuracy[8]))


def test_intervals_hold_new_models_as_often_as_they_say(tmp_path: Path) -> None:
    flops, held, seeds = 1e24, 0, 60
    for seed in range(seeds):
        read = downstream.read_points(points(tmp_path / "points.csv", noise=0.02, seed=seed))
        chain = downstream.fit_chain(read, 0.25, 1.0)
        low, high = downstream.interval(chain, read, flops, 0.9, 60, seed)
        rng = np.random.default_rng(1000 + seed)
        new = TRUE.accuracy(TRUE.nll(flops) + 0.02 * rng.standard_normal()) + 0.02 * rng.standard_normal()
        held += low <= new <= high
    assert abs(held / seeds - 0.9) <= 3.3 * math.sqrt(0.9 * 0.1 / seeds), held / seeds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("flops,nll,accuracy\n1e20,1.2,0.3\n1e21,1.0,0.4\n", "2 points with flops"),
        ("flops,nll,accuracy\n1e20,1.2,\n1e21,1.0,\n1e22,0.9,0.5\n", "1 points with accuracy"),
        (
            "flops,nll,accuracy\n1e20,1.2,1.3\n",
            "points.csv:2: accuracy is '1.3'; expected a number from 0 to 1",
        ),
        ("flops,nll,accuracy\n1e20,nan,0.3\n", "points.csv:2: nll is 'nan'"),
        (
            "flops,nll,accuracy\n1e20,1e300,0.3\n",
            "points.csv:2: nll is '1e300'; expected a number from 1e-06 to",
        ),
        ("flops,nll,acuracy\n1e20,1,0.3\n", "unknown column 'acuracy'; did you mean 'accuracy'?"),
        ("flops,nll,accuracy\n" + "1e20,1.2,0.3\n" * 3, "all points have the same flops"),
    ],
)
def test_too_few_points_and_nonsense_give_one_line_and_status_2(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "points.csv"
    file.write_text(text, encoding="utf-8")
    assert scale("forecast", "--points", str(file)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--flops=-1",), "--flops -1: expected a positive number"),
        (("--chance", "1.2"), "--chance 1.2: expected a share"),
        (("--chance", "0.5", "--ceiling", "0.4"), "--chance 0.5 must lie below --ceiling 0.4"),
        (("--bootstrap", "3"), "at least 50 draws"),
        (("--flops", "1e300"), "--flops 1e300: training compute must be from 1 to 1e+36"),
        (("--plot", "/proc/x.svg"), "--plot /proc/x.svg: cannot be written"),
    ],
)
def test_nonsense_options_are_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = points(tmp_path / "points.csv")
    assert scale("forecast", "--points", str(file), *arguments) == 2
    assert said in capsys.readouterr().err


def test_points_near_chance_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "points.csv"
    file.write_text(
        "flops,nll,accuracy\n1e19,2.0,0.25\n1e20,1.8,0.26\n1e21,1.6,0.27\n1e22,1.4,0.28\n", encoding="utf-8"
    )
    assert scale("forecast", "--points", str(file), "--chance", "0.25") == 0
    assert "no point is far above chance" in capsys.readouterr().out


def test_the_picture_has_axes_units_and_a_legend(tmp_path: Path) -> None:
    read = downstream.read_points(points(tmp_path / "points.csv"))
    left, right = forecast_plot.figure(downstream.fit_chain(read, 0.25, 1.0), read, 3.8e25).axes
    assert left.get_xlabel() == "training compute C (FLOP)"
    assert left.get_xscale() == "log"
    assert left.get_ylabel() == "normalised NLL of the right answer (nats)"
    assert right.get_ylabel() == "accuracy (share)"
    legend = [text.get_text() for text in right.get_legend().get_texts()]
    assert legend == ["points", "fit, sigmoid", "chance, 0.25", "forecast"]
    file = tmp_path / "forecast.svg"
    assert (
        scale("forecast", "--points", str(tmp_path / "points.csv"), "--flops", "1e23", "--plot", str(file))
        == 0
    )
    assert "<svg" in file.read_text(encoding="utf-8")
