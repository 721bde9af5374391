"""Published laws give the published optima, and the verb says so with bands, derivations and a picture."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from pipeline.errors import UserError
from pipeline.plan.quantity import Quantity, given, words
from pipeline.plan.scaling import budget, laws, plot
from pipeline.plan.scaling.laws import Parametric
from tests.unit.plan.scale import scale

CHINCHILLA = given("training compute", 5.76e23, "FLOP")


@pytest.mark.parametrize(("n", "flops", "tokens"), laws.TABLE_3)
def test_approach_1_reproduces_table_3_within_a_tenth(n: float, flops: float, tokens: float) -> None:
    found = laws.approach_1(given("C", flops, "FLOP"))
    assert found.parameters.value == pytest.approx(n, rel=0.1)
    assert found.tokens.value == pytest.approx(tokens, rel=0.1)


@pytest.mark.parametrize(
    ("law", "parameters", "tokens"),
    [
        (laws.HOFFMANN_ROUNDED, "32.2B", "2.98T"),
        (laws.BESIROGLU_FIT, "72.2B", "1.33T"),
        # The published check value of the unrounded law has its exponents at four digits.
        (Parametric(1.69, 406.4, 410.7, 0.3392, 0.2849), "40.3B", "2.38T"),
        # In full it is 40.36B; the paper prints 40B.
        (laws.HOFFMANN_UNROUNDED, "40.4B", "2.38T"),
    ],
)
def test_parametric_optima_are_the_published_ones_to_the_printed_digits(
    law: Parametric, parameters: str, tokens: str
) -> None:
    n, d = law.optimum(5.76e23)
    assert words(n, "parameter") == f"{parameters} parameter"
    assert words(d, "token") == f"{tokens} token"


def test_the_unrounded_constants_are_those_of_the_source_and_print_as_the_rounded_ones() -> None:
    law, printed = laws.HOFFMANN_UNROUNDED, laws.HOFFMANN_ROUNDED
    assert (round(law.e, 2), round(law.a, 1), round(law.b, 1)) == (printed.e, printed.a, printed.b)
    assert (round(law.alpha, 2), round(law.beta, 2)) == (printed.alpha, printed.beta)
    assert law.optimum(5.76e23)[0] == pytest.approx(40.3e9, rel=0.002)


@pytest.mark.parametrize("flops", [1e18, 5.76e23, 1e27])
def test_the_closed_form_is_the_lowest_loss_at_its_budget(flops: float) -> None:
    law = laws.BESIROGLU_FIT
    n, d = law.optimum(flops)
    assert 6 * n * d == pytest.approx(flops)
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert law.loss(n * factor, d / factor) > law.loss(n, d)


def test_exponents_over_compute_are_those_of_the_three_approaches() -> None:
    def exponent(law: object) -> float:
        ends = [law(given("C", flops, "FLOP")).parameters.value for flops in (1e20, 1e24)]  # type: ignore[operator]
        return math.log(ends[1] / ends[0]) / math.log(1e4)

    assert exponent(laws.approach_1) == pytest.approx(0.50)
    assert exponent(laws.approach_2) == pytest.approx(0.49)
    assert round(exponent(laws.hoffmann_unrounded), 2) == 0.46
    assert round(exponent(laws.besiroglu), 4) == 0.5126  # as Besiroglu et al. print it
    assert exponent(laws.kaplan) == pytest.approx(0.73)
    assert 1 - exponent(laws.llama3) == pytest.approx(0.53)


def test_llama_3_gives_what_its_printed_pair_gives_and_says_what_the_paper_states() -> None:
    found = laws.llama3(given("C", 3.8e25, "FLOP"))
    assert round(found.tokens.value / 1e12, 2) == 10.46
    assert "16.55T" in found.note
    assert "rounded" in found.note
    # The note's own figure: 16.55T and 402B are 3.8e25 FLOP at alpha = 0.5378.
    assert pytest.approx(16.55e12, rel=0.005) == 0.29 * 3.8e25**0.5378
    low, high = found.tokens_band or (0, 0)
    assert low < found.tokens.value < high < 16.55e12  # rounding alone does not explain it


def test_bands_hold_their_law_and_leave_the_budget_whole() -> None:
    for found in laws.published(CHINCHILLA):
        assert 6 * found.parameters.value * found.tokens.value == pytest.approx(CHINCHILLA.value)
        if found.parameters_band and found.tokens_band:
            assert found.parameters_band[0] <= found.parameters.value <= found.parameters_band[1]
            assert 6 * found.parameters_band[0] * found.tokens_band[1] == pytest.approx(CHINCHILLA.value)
            assert found.band_means


def test_a_law_that_does_not_fall_with_data_has_no_optimum() -> None:
    with pytest.raises(ValueError, match="no optimum"):
        Parametric(1.7, 400.0, 400.0, 0.3, -0.1).optimum(1e20)


def test_gpu_hours_and_money_become_flops() -> None:
    peak = {"bf16": 989.0}
    hours = budget.from_gpu_hours("1e6", "H100-80GB", "0.4", "bf16", lambda gpu: peak)
    assert hours.value == pytest.approx(1e6 * 3600 * 989e12 * 0.4)
    price = given("price of an hour", 2.0, "USD", "prices.yaml")
    money = budget.from_money("2e6", "H100-80GB", None, "bf16", lambda gpu: peak, lambda gpu: price)
    assert money.value == pytest.approx(hours.value)
    assert any("prices.yaml" in line for line in money.derivation())
    with pytest.raises(UserError, match="H100-80GB has bf16"):
        budget.from_gpu_hours("1", "H100-80GB", None, "fp4", lambda gpu: peak)


def test_the_tables_of_gpus_and_prices_are_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware, money = ModuleType("hardware"), ModuleType("money")
    hardware.gpu = lambda name: SimpleNamespace(tflops={"bf16": 100.0})  # type: ignore[attr-defined]
    money.hourly = lambda name: Quantity("price", 3.0, "USD")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipeline.plan.hardware", hardware)
    monkeypatch.setitem(sys.modules, "pipeline.plan.money", money)
    spent = budget.from_money("300", "any", "0.5", "bf16")
    assert spent.value == pytest.approx(100 * 3600 * 100e12 * 0.5)


def test_every_law_stands_in_the_table_with_its_caveats(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale("train", "--flops", "5.76e23") == 0
    said = capsys.readouterr().out
    for words_ in (
        "72.2B",
        "1.33T",
        "32.2B",
        "2.98T",
        "67B",
        "Llama 3",
        "Kaplan",
        "16.55T",
        "58.3B to 89.5B",
    ):
        assert words_ in said


def test_explain_goes_down_to_the_constants_and_their_paper(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale("train", "--flops", "5.76e23", "--explain") == 0
    said = capsys.readouterr().out
    assert "G (C/6)^(beta/(alpha+beta))" in said
    assert "alpha: 0.3478  [Besiroglu et al. 2024, arXiv 2404.10102]" in said
    assert "A: 0.29  [Dubey et al. 2024 (Llama 3), section 3.2.1]" in said


def test_json_says_the_same_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale("train", "--flops", "3.8e25", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    by_law = {each["law"]: each for each in found["laws"]}
    assert by_law["Llama 3 IsoFLOP"]["tokens"]["value"] == pytest.approx(10.46e12, rel=1e-3)
    assert found["budget"]["value"] == 3.8e25
    assert any("above the budgets" in warning for warning in found["warnings"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--flops=-1e20",), "--flops -1e20: expected a positive number"),
        (("--flops", "nan"), "--flops nan: expected a positive number"),
        (("--flops", "much"), "--flops much: expected a number"),
        (("--flops", "1e20", "--gpu-hours", "5"), "one budget at a time"),
        (("--gpu-hours", "1e6"), "--gpu-hours needs --gpu"),
        (("--budget-usd", "0", "--gpu", "H100-80GB"), "--budget-usd 0: expected a positive number"),
        ((), "say what there is to spend"),
        (("--flops", "1e20", "--mfu", "0.3"), "--mfu needs --gpu-hours or --budget-usd"),
        (("--flops", "1e20", "--gpu", "H100-80GB"), "--gpu needs --gpu-hours or --budget-usd"),
        (("--flops", "1e20", "--level", "7"), "--level needs --runs"),
        (("--flops", "1e20", "--bootstrap", "-3"), "--bootstrap needs --runs"),
        (("--flops", "1e300"), "--flops 1e300: training compute must be from 1 to 1e+36 FLOP"),
        (("--gpu-hours", "1e30", "--gpu", "H100-80GB"), "training compute must be from 1 to 1e+36 FLOP"),
        (("--flops", "1e20", "--plot", "curves.gif"), "must end in .svg, .png or .pdf"),
        (("--flops", "1e20", "--plot", "/proc/x.svg"), "--plot /proc/x.svg: cannot be written"),
    ],
)
def test_nonsense_gives_one_line_and_status_2(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scale("train", *arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_picture_has_axes_units_and_a_legend(tmp_path: Path) -> None:
    curves, optima = plot.figure(CHINCHILLA, None).axes
    assert curves.get_xlabel() == "model size N (parameters)"
    assert curves.get_ylabel() == "loss (nats per token)"
    assert optima.get_xlabel() == "training compute C (FLOP)"
    assert {axes.get_xscale() for axes in (curves, optima)} == {"log"}
    legend = [text.get_text() for text in curves.get_legend().get_texts()]
    assert "5.76e+23 FLOP" in legend
    assert "optimum of each budget" in legend
    line = next(each for each in curves.lines if each.get_label() == "optimum of each budget")
    assert line.get_xdata()[2] == pytest.approx(72.2e9, rel=1e-3)
    assert len(optima.get_legend().get_texts()) == 8  # seven laws and the budget
    for name in ("curves.svg", "curves.png"):
        assert scale("train", "--flops", "5.76e23", "--plot", str(tmp_path / name)) == 0
    assert "<svg" in (tmp_path / "curves.svg").read_text(encoding="utf-8")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
