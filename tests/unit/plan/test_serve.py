"""The model that is cheapest to train and serve, against the optima of Sardana et al. 2024 and against a plain search."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.plan.quantity import given
from pipeline.plan.serving.amounts import amount
from pipeline.plan.serving.optimum import (
    COUNT,
    LAWS,
    Law,
    Optimum,
    Rates,
    cheapest,
    money_rate,
    quality_at,
    quality_of,
)
from tests.unit.plan.serving_tools import Verbs, verbs_fixture

SARDANA = LAWS["sardana"]
verbs = pytest.fixture(verbs_fixture)


def for_quality(size: float, demand: float, rates: Rates = COUNT, law: Law = SARDANA) -> Optimum:
    served = given("input tokens", demand, "token"), given("output tokens", 0.0, "token")
    return cheapest(law, quality_of(law, size), *served, rates)


@pytest.mark.parametrize(
    ("quality", "demand", "parameters", "data_ratio", "tokens", "saving"),
    [
        (7e9, 1e11, 6e9, 1.18, None, None),
        (30e9, 1e13, 13.6e9, 2.84, None, 28.0),
        (70e9, 1e13, 41.6e9, None, 7.92e12, None),
    ],
)
def test_published_optima_are_met_within_two_percent(
    quality: float,
    demand: float,
    parameters: float,
    data_ratio: float | None,
    tokens: float | None,
    saving: float | None,
) -> None:
    found = for_quality(quality, demand)
    assert found.parameters.value == pytest.approx(parameters, rel=0.02)
    if data_ratio is not None:
        assert found.data_ratio.value == pytest.approx(data_ratio, rel=0.02)
    if tokens is not None:
        assert found.tokens.value == pytest.approx(tokens, rel=0.02)
    if saving is not None:
        assert found.saving.value == pytest.approx(saving, rel=0.02)


@pytest.mark.parametrize("law", LAWS.values(), ids=list(LAWS))
def test_nothing_served_leaves_the_compute_optimal_model(law: Law) -> None:
    found = for_quality(7e9, 0.0, law=law)
    assert found.parameters.value == pytest.approx(7e9, rel=1e-9)
    assert found.saving.value == pytest.approx(0, abs=1e-9)
    # That model is what the law holds best for its own training budget.
    n, d = law.terms.optimum(6 * found.parameters.value * found.tokens.value)
    assert (n, d) == pytest.approx((found.parameters.value, found.tokens.value), rel=1e-9)


@settings(max_examples=40, deadline=None)
@drawn(
    law=st.sampled_from(list(LAWS.values())),
    quality=st.floats(8, 12.5),
    served=st.floats(8, 16),
    output=st.floats(0, 1),
    price=st.floats(0.01, 100),
)
def test_no_other_size_of_the_same_loss_is_cheaper(
    law: Law, quality: float, served: float, output: float, price: float
) -> None:
    loss = quality_of(law, 10**quality)
    whole = 10**served
    asked = given("input tokens", whole * (1 - output), "token")
    answered = given("output tokens", whole * output, "token")
    one = given("cost", 1.0)
    rates = Rates(one, given("cost", price), given("cost", 3 * price), "USD")
    found = cheapest(law, loss, asked, answered, rates)

    def cost(size: float) -> float:
        tokens = law.tokens(size, loss.value)
        return 6 * size * tokens + 2 * size * price * (asked.value + 3 * answered.value)

    assert cost(found.parameters.value) == pytest.approx(found.cost.value, rel=1e-9)
    low, high = math.log(law.smallest(loss.value)), math.log(10 * found.plain_parameters.value)
    others = [math.exp(low + (high - low) * step / 2000) for step in range(1, 2001)]
    assert found.cost.value <= min(map(cost, others)) * (1 + 1e-9)


def test_more_demand_means_a_smaller_model_on_more_data() -> None:
    found = [for_quality(30e9, 10**power) for power in range(9, 17)]
    for fewer, more in itertools.pairwise(found):
        assert more.parameters.value < fewer.parameters.value
        assert more.tokens.value > fewer.tokens.value
        assert more.saving.value > fewer.saving.value


def test_a_budget_buys_the_loss_of_its_own_compute_optimal_model() -> None:
    law = LAWS["hoffmann"]  # 40B and 2.38T tokens at Gopher's budget, as the paper prints
    loss = quality_at(law, 5.76e23)
    assert loss.value == pytest.approx(law.terms.loss(40.3e9, 2.38e12), abs=1e-4)
    assert law.balanced_parameters(loss.value) == pytest.approx(40.3e9, rel=0.005)


def test_money_is_what_useful_flop_cost() -> None:
    # A GPU of 1e15 FLOP/s at 36% for 3.60 USD an hour: 0.001 USD buys 0.36e15 FLOP.
    rate = money_rate("train", given("price", 3.6, "USD"), given("peak", 1e15, "FLOP/s"), given("MFU", 0.36))
    assert rate.value == pytest.approx(0.001 / 0.36e15)
    same = Rates(rate, rate, rate, "USD")
    counted, paid = for_quality(30e9, 1e13), for_quality(30e9, 1e13, same)
    assert paid.parameters.value == pytest.approx(counted.parameters.value, rel=1e-6)
    assert paid.cost.value == pytest.approx(counted.cost.value * rate.value, rel=1e-6)


def test_dear_output_makes_the_model_smaller(verbs: Verbs) -> None:
    words = (
        "serve",
        "--quality",
        "30B",
        "--input-tokens",
        "9T",
        "--output-tokens",
        "1T",
        "--gpu",
        "h100",
        "--price",
        "2",
    )
    cheap = verbs.json(*words, "--mfu-output", "0.4")["by name"]
    dear = verbs.json(*words, "--mfu-output", "0.01")["by name"]
    assert dear["parameters"] < cheap["parameters"]
    assert dear["cost"] > cheap["cost"]
    # With one MFU and one price for all, money follows FLOP: 6 N D + 2 N served, at 989 TFLOP/s and 40%.
    flop = 6 * cheap["parameters"] * cheap["training tokens"] + 2 * cheap["parameters"] * 1e13
    assert cheap["cost"] == pytest.approx(flop / (989e12 * 0.4) / 3600 * 2, rel=1e-9)


def test_the_verb_shows_how_the_optimum_moves(verbs: Verbs, tmp_path: Path) -> None:
    picture = tmp_path / "demand.svg"
    found = verbs.json("serve", "--quality", "30B", "--demand", "10T", "--plot", str(picture))
    assert found["by name"]["parameters"] == pytest.approx(13.6e9, rel=0.02)
    rows = found["tables"][0]["rows"]
    assert [row["served"]["value"] for row in rows] == pytest.approx([0, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15])
    sizes = [row["parameters"]["value"] for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    drawn = picture.read_text()
    assert drawn.startswith("<?xml")
    assert "compute-optimal: 30B parameters" in drawn
    assert verbs("serve", "--quality", "30B", "--demand", "10T", "--plot", str(tmp_path / "x.pdf"))[0] == 0
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_every_number_can_be_asked_for_its_derivation(verbs: Verbs) -> None:
    status, out, _ = verbs("serve", "--quality", "30B", "--demand", "10T", "--explain")
    assert status == 0
    for words in (
        "Sardana et al. 2024",
        "6 N D c_tr",
        "alpha: 0.336",
        "beta: 0.283",
        "(B / (loss - E - A/N^alpha))^(1/beta)",
    ):
        assert words in out
    _, out, _ = verbs("serve", "--quality", "30B", "--demand", "10T", "--explain", "saving")
    assert out.startswith("saving: 0 %") or "saving: 27.98 %" in out


def test_training_in_a_precision_of_weights_alone_is_no_choice(verbs: Verbs) -> None:
    words = ("serve", "--quality", "7B", "--demand", "1T", "--gpu", "H100-80GB", "--price", "2")
    with pytest.raises(SystemExit) as refused:
        verbs(*words, "--precision", "int4-awq")
    assert refused.value.code == 2
    half = verbs.json(*words)["by name"]["cost of the compute-optimal"]
    wide = verbs.json(*words, "--precision", "fp32")["by name"]["cost of the compute-optimal"]
    assert wide > half


def test_machines_get_each_derivation_once(verbs: Verbs) -> None:
    found = verbs.json("serve", "--quality", "30B", "--demand", "10T", "--explain")
    derived: list[str] = []

    def walk(number: dict[str, Any]) -> None:
        if "inputs" in number:
            derived.append(json.dumps({**number, "inputs": [each["name"] for each in number["inputs"]]}))
            for each in number["inputs"]:
                walk(each)

    for number in found["numbers"]:
        walk({key: value for key, value in number.items() if key != "remark"})
    assert derived
    assert len(derived) == len(set(derived))
    assert all("inputs" not in cell for row in found["tables"][0]["rows"] for cell in row.values())
    assert len(json.dumps(found, indent=2).splitlines()) < 1000


def test_a_law_of_the_users_own_can_be_given(verbs: Verbs) -> None:
    own = verbs.json("serve", "--loss", "2", "--demand", "1T", "--constants", "1.69,406.4,410.7,0.336,0.283")
    published = verbs.json("serve", "--loss", "2", "--demand", "1T")
    assert own["by name"] == published["by name"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--loss 1.69 --demand 1e12", "irreducible 1.69"),
        ("--loss 1.6900001 --demand 1e12", "is asked from 1.69811 to 20.262"),
        ("--loss 1e300 --demand 1e12", "is asked from 1.69811 to 20.262"),
        ("--flops 1 --demand 1e12", "is asked from 1.69811 to 20.262"),
        ("--flops 1e300 --demand 1e12", "--flops 1e+300: must be from 1 to 1e+36 FLOP"),
        ("--quality 1e300 --demand 1e13", "--quality 1e+300: must be from 100000 to 1e+15 parameters"),
        ("--quality 1 --demand 1e13", "--quality 1: must be from 100000 to 1e+15 parameters"),
        ("--quality 30B --demand 1e300", "--demand 1e+300: must be at most 1e+18 tokens"),
        ("--quality 1B --demand 1T --constants 1,1e300,1,0.001,1", "A 1e+300: must be from 0.001 to 1e+09"),
        ("--quality 1B --demand 1T --constants 1,1e9,1e-3,2,0.05", "gives no numbers for models of"),
        ("--loss nan --demand 1e12", "--loss nan: not a number"),
        ("--quality 0 --demand 1e12", "--quality 0: must be more than zero"),
        ("--quality 7B --demand=-1e12", "--demand -1e+12: must be zero or more"),
        ("--quality 7B", "give --demand, or --input-tokens"),
        ("--quality 7B --input-tokens 1e9", "belong together"),
        ("--quality 7B --demand 1T --output-share 2", "--output-share 2: must be from 0 to 1"),
        ("--quality 7B --demand 1T --gpu h100 --price 2 --mfu-train 0", "--mfu-train 0: must be a share"),
        ("--quality 7B --demand 1T --gpu h100 --price -2", "--price -2: must be more than zero"),
        (
            "--quality 7B --demand 1T --gpu h100 --price 2 --serve-precision nvfp4",
            "H100-80GB does not compute in nvfp4",
        ),
        ("--quality 7B --demand 1T --gpu h900 --price 2", "there is no GPU 'h900'"),
        ("--quality 7B --demand 1T --price 2", "--price needs --gpu"),
        ("--quality 7B --demand 1T --mfu-train 0", "--mfu-train needs --gpu"),
        ("--quality 7B --demand 1T --precision fp8", "--precision needs --gpu"),
        (
            "--quality 7B --demand 1T --gpu A100-80GB --price 2 --precision fp8",
            "does not train in it; it does in bf16, fp16",
        ),
        (
            "--quality 7B --input-tokens 1T --output-tokens 0 --output-share 1",
            "--output-share is of --demand",
        ),
        ("--loss 2 --demand 1T --law hoffmann --constants 1,1,1,1,1", "one law at a time"),
        ("--quality 7B --demand 1T --constants 1,2,3", "give five numbers"),
        ("--quality 7B --demand 1T --plot x.gif", "must end in .svg, .png or .pdf"),
        ("--quality 7B --demand 1T --plot /proc/x.svg", "--plot /proc/x.svg: cannot be written"),
        ("--quality 7B --demand 1T --plot /nowhere/x.svg", "there is no folder /nowhere"),
        ("--quality 7x --demand 1T", "write it as 7B"),
    ],
)
def test_nonsense_gives_one_clear_line_and_exit_status_2(verbs: Verbs, words: str, told: str) -> None:
    status, out, error = verbs("serve", *words.split())
    assert (status, out) == (2, "")
    assert told in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("law", list(LAWS))
@pytest.mark.parametrize("quality", ["1e5", "1e15"])
@pytest.mark.parametrize("demand", ["0", "1e-200", "1", "1e18"])
def test_the_bounds_themselves_are_answered(verbs: Verbs, law: str, quality: str, demand: str) -> None:
    found = verbs.json("serve", "--quality", quality, "--demand", demand, "--law", law)["by name"]
    assert found["parameters"] <= float(quality) * (1 + 1e-6)
    assert found["saving"] >= -1e-6


def test_amounts_are_read_as_people_write_them() -> None:
    assert [amount(text, "--x") for text in ("7B", "1.5T", "3e13", "1,000", "400M")] == [
        7e9,
        1.5e12,
        3e13,
        1000,
        4e8,
    ]
    with pytest.raises(UserError, match="--x inf"):
        amount("inf", "--x")


def test_registering_the_verbs_loads_no_numerics() -> None:
    code = (
        "import argparse, sys\n"
        "from pipeline.plan.serving import commands\n"
        "commands.add(argparse.ArgumentParser().add_subparsers())\n"
        "print([name for name in ('numpy', 'scipy', 'matplotlib', 'yaml') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
