"""Money is the price table's, with its date and source; energy is arithmetic; nonsense is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.plan import hardware, money
from pipeline.plan.quantity import given

TABLE = """\
gpus:
  h100:
    usd_per_gpu_hour: 2.5
    date: 2026-01-31
    source: our contract
energy: {usd_per_kwh: 0.2, pue: 1.25, utilisation: 0.8, kg_co2_per_kwh: 0.4, date: 2026-01-31, source: our bill}
"""
HUNDRED = given("GPU-hours", 100, "h")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "prices.yaml"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_cost_is_hours_times_price_and_says_when_and_whose(table: Path) -> None:
    found = money.cost(HUNDRED, "H100-80GB", table)
    assert (found.value, found.unit) == (250.0, "USD")
    assert found.source == "our contract; 2026-01-31 (prices.yaml)"
    assert [part.value for part in found.inputs] == [100, 2.5]


def test_energy_is_power_times_utilisation_times_pue(table: Path) -> None:
    drawn = money.energy(HUNDRED, hardware.gpu("h100"), table)  # 700 W
    assert drawn is not None
    assert str(drawn) == "70 kWh"  # 100 h x 0.7 kW x 0.8 x 1.25
    bill, carbon = money.energy_cost(drawn, table), money.carbon(drawn, table)
    assert bill is not None
    assert bill.value == pytest.approx(14.0)
    assert carbon is not None
    assert str(carbon) == "28 kg CO2e"


def test_what_is_not_given_is_not_said(table: Path) -> None:
    table.write_text(TABLE.partition("energy")[0], encoding="utf-8")
    assert money.energy(HUNDRED, hardware.gpu("h100"), table) is None
    drawn = given("energy", 1000, "Wh")
    assert money.energy_cost(drawn, table) is None
    assert money.carbon(drawn, table) is None


def test_the_users_own_table_takes_the_place_of_ours(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert money.hourly("h100").value != 2.5
    monkeypatch.setenv("LIFECYCLE_PRICES", str(table))
    assert money.hourly("h100").value == 2.5


def test_a_changed_table_is_read_again(table: Path) -> None:
    import os

    assert money.hourly("h100", table).value == 2.5
    table.write_text(TABLE.replace("2.5", "3.5"), encoding="utf-8")
    os.utime(table, ns=(1, 1))
    assert money.hourly("h100", table).value == 3.5


def test_every_price_that_comes_with_the_project_has_a_date_and_a_source() -> None:
    for name, price in money.prices().gpus.items():
        assert hardware.gpu(name).name == name
        assert price.usd > 0
        assert price.date.startswith("2026-")
        assert price.source


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            "usd_per_gpu_hour: 2.5",
            "usd_per_gpu_hour: -1",
            r":3: gpus.h100.usd_per_gpu_hour: -1 is out of range",
        ),
        ("usd_per_gpu_hour: 2.5", "usd_per_gpu_hour: .nan", r":3: .*nan is not a number"),
        ("usd_per_gpu_hour: 2.5", "usd_per_gpu_hour: true", r":3: .*True is not a number"),
        ("    source: our contract\n", "", r":2: gpus.h100: source is missing"),
        ("date: 2026-01-31\n", "date: yesterday\n", r":4: gpus.h100.date: 'yesterday' is no date"),
        ("h100:", "warp-drive:", r":2: gpus.warp-drive: there is no GPU 'warp-drive'"),
        ("  h100:", "  h100: [", r"prices.yaml:\d+: this is not YAML"),
        ("gpus:", "cards:", r":1: cards: is no field"),
        ("pue: 1.25", "pue: 0.5", r":6: energy.pue: 0.5 is out of range; it must be from 1 to 10"),
    ],
)
def test_a_mistake_in_the_table_names_its_line_and_field(table: Path, old: str, new: str, told: str) -> None:
    assert old in TABLE
    table.write_text(TABLE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(UserError, match=told):
        money.hourly("h100", table)


def test_other_nonsense_is_one_clear_line(table: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no price of B200: add it below gpus"):
        money.hourly("B200", table)
    with pytest.raises(UserError, match="there is no GPU 'abacus'"):
        money.hourly("abacus", table)
    with pytest.raises(UserError, match="cannot be read: No such file"):
        money.hourly("h100", tmp_path / "none.yaml")
    with pytest.raises(UserError, match=r"-1.* GPU-hours: give a number of at least 0"):
        money.cost(given("GPU-hours", -1, "h"), "h100", table)
    with pytest.raises(UserError, match="nan GPU-hours"):
        money.cost(given("GPU-hours", float("nan"), "h"), "h100", table)
