"""GPUs: the table against data sheets, how fleets are written, and mistakes of either told in one line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.plan import hardware
from pipeline.plan.hardware import TABLE, Fleet, gpu, kinds, parse

# As the data sheets have them: GB, GB/s, dense TFLOP/s in bf16 and fp8, W.
SHEETS = [
    ("H100-80GB", 80, 3350, 989, 1979, 700),
    ("H100-PCIe", 80, 2000, 756, 1513, 350),
    ("H200", 141, 4800, 989, 1979, 700),
    ("H20", 96, 4000, 148, 296, 400),
    ("B200", 180, 8000, 2250, 4500, 1000),
    ("GB200", 186, 8000, 2500, 5000, 1200),
    ("A100-80GB", 80, 2039, 312, None, 400),
    ("A100-40GB", 40, 1555, 312, None, 400),
    ("L40S", 48, 864, 362, 733, 350),
    ("L4", 24, 300, 121, 242, 72),
    ("A10G", 24, 600, 70, None, 300),
    ("RTX-4090", 24, 1008, 165.2, 330.3, 450),
]


@pytest.mark.parametrize(("name", "memory", "bandwidth", "bf16", "fp8", "power"), SHEETS)
def test_figures_are_those_of_the_data_sheets(
    name: str, memory: float, bandwidth: float, bf16: float, fp8: float | None, power: float
) -> None:
    found = gpu(name)
    assert (found.memory_gb, found.bandwidth) == (memory, bandwidth * 1e9)
    assert found.flops("bf16") == pytest.approx(bf16 * 1e12)
    assert found.tflops.get("fp8") == fp8
    assert (found.power_w, bool(found.source)) == (power, True)


@pytest.mark.parametrize("name", kinds())
def test_figures_of_a_kind_agree_with_each_other(name: str) -> None:
    found = gpu(name)
    peaks = found.tflops
    assert peaks["fp32"] <= peaks["fp16"]
    # Halving the bits doubles the rate of tensor cores; fp4 may do better.  A sparse figure would break it.
    if "bf16" in peaks:
        assert peaks["tf32"] == pytest.approx(peaks["bf16"] / 2, rel=0.03)
        assert peaks["bf16"] == peaks["fp16"]
    if "fp8" in peaks:
        assert peaks["fp8"] == pytest.approx(2 * peaks["bf16"], rel=0.02)
    if "nvfp4" in peaks:
        assert 2 * peaks["fp8"] <= peaks["nvfp4"] <= 4 * peaks["fp8"]
    major = int(found.compute.split(".")[0])
    assert ("bf16" in peaks, "nvfp4" in peaks) == (major >= 8, major >= 10)
    assert ("fp8" in peaks) == (float(found.compute) >= 8.9)
    assert (found.nvlink_gb_s > 0) == (found.nvlink_gpus > 1)
    assert found.link(2) == (found.nvlink_gb_s or found.pcie_gb_s) * 1e9
    assert found.link(found.nvlink_gpus + 1) == found.pcie_gb_s * 1e9
    assert found.network_gb_s < found.pcie_gb_s < found.bandwidth_gb_s


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("h100", "H100-80GB"),
        ("H100-SXM", "H100-80GB"),
        ("h100_80gb", "H100-80GB"),
        ("NVIDIA H100 80GB HBM3", "H100-80GB"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("a100", "A100-80GB"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA L40S", "L40S"),
        ("Tesla V100-SXM2-32GB", "V100-32GB"),
        ("gb200", "GB200"),
    ],
)
def test_a_kind_goes_by_its_usual_names(written: str, name: str) -> None:
    assert gpu(written).name == name


def test_an_unknown_kind_is_told_with_those_that_are_known() -> None:
    with pytest.raises(
        UserError, match=r"no GPU 'H300' in .*configs/gpus.yaml; there are: H100-80GB, .*L40S"
    ) as told:
        gpu("H300")
    assert told.value.exit_status == 2
    assert "\n" not in str(told.value)


def test_a_precision_that_a_gpu_lacks_is_told() -> None:
    with pytest.raises(
        UserError, match=r"A100-80GB does not multiply in fp8 .*it has: fp32, tf32, fp16, bf16"
    ):
        gpu("a100").flops("fp8")


def test_figures_say_where_they_are_from() -> None:
    h100 = gpu("h100")
    assert str(h100.quantity("memory")) == "85.5 GB"
    assert str(h100.quantity("bf16")) == "989 TFLOP/s"
    assert "data sheet" in h100.quantity("bandwidth").source
    assert h100.quantity("network").source.startswith("assumed in ")
    assert [h100.quantity(what).value for what in ("nvlink", "network", "power")] == [450e9, 50e9, 700]


# -------------------------------------------------------------------------------------------- fleets


@pytest.mark.parametrize(
    ("text", "count", "nodes", "name", "words"),
    [
        ("8xH100-80GB", 8, 1, "H100-80GB", "8xH100-80GB"),
        ("H100-80GB", 1, 1, "H100-80GB", "1xH100-80GB"),
        ("2x8xH100", 16, 2, "H100-80GB", "16xH100-80GB in 2 machines"),
        (" 4 X h200 ", 4, 1, "H200", "4xH200"),
        ("64xh100", 64, 8, "H100-80GB", "64xH100-80GB in 8 machines"),
        ("12xA100", 12, 2, "A100-80GB", "12xA100-80GB in 2 machines"),
        ("3x2xL4", 6, 3, "L4", "6xL4 in 3 machines"),
        ("1x16xV100", 16, 1, "V100-32GB", "16xV100-32GB"),
        ("8xGB200", 8, 2, "GB200", "8xGB200 in 2 machines"),
        ("2x4090", 2, 1, "RTX-4090", "2xRTX-4090"),
        ("2xNVIDIA GeForce RTX 4090", 2, 1, "RTX-4090", "2xRTX-4090"),
    ],
)
def test_fleets_are_read_as_people_write_them(
    text: str, count: int, nodes: int, name: str, words: str
) -> None:
    fleet = parse(text)
    assert (fleet.count, fleet.nodes, fleet.per_node * fleet.nodes) == (count, nodes, count)
    assert (fleet.gpu.name, str(fleet)) == (name, words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0xH100", "from 1 to"),
        ("8x0xH100", "from 1 to"),
        ("2000000xH100", "from 1 to"),
        ("99999999999xH100", "expected NUMBERxKIND"),
        ("-8xH100", "expected NUMBERxKIND"),
        ("1.5xH100", "expected NUMBERxKIND"),
        ("2x2x8xH100", "expected NUMBERxKIND"),
        ("", "expected NUMBERxKIND"),
        ("8x", "expected NUMBERxKIND"),
        ("xH100", "no GPU 'xH100'"),
        ("8", "no GPU '8'"),
        ("8xH900", "no GPU 'H900'"),
        ("8 H100", "no GPU '8 H100'"),
        ("9xH100", "cannot be spread evenly over machines of 8"),
        ("1000x9999xH100", "from 1 to"),
    ],
)
def test_nonsense_for_a_fleet_is_told_in_one_line(text: str, words: str) -> None:
    with pytest.raises(UserError) as told:
        parse(text)
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@given(st.text(alphabet="0123456789xX -.,hH10ab\n", max_size=20))
def test_any_text_is_a_fleet_or_one_line(text: str) -> None:
    try:
        fleet = parse(text)
    except UserError as error:
        told = str(error)
    else:
        assert fleet.nodes * fleet.per_node == fleet.count >= 1
        return
    assert "\n" not in told


@given(st.integers(1, 40), st.integers(1, 16))
def test_what_a_fleet_says_is_read_back(nodes: int, gpus: int) -> None:
    assert parse(f"{nodes}x{gpus}xH200") == Fleet(nodes * gpus, gpu("H200"), gpus)


# ------------------------------------------------------------------------------------------- tables

MINE = {
    "Mine-1": {
        "memory_gb": 10,
        "bandwidth_gb_s": 100,
        "tflops": {"bf16": 5},
        "nvlink_gb_s": 0,
        "nvlink_gpus": 1,
        "pcie_gb_s": 8,
        "gpus_per_node": 2,
        "network_gb_s": 1,
        "power_w": 50,
        "compute": "9.9",
        "source": "my bench",
    }
}


def table(path: Path, **changes: object) -> Path:
    """A table of one kind, some of whose fields are changed, or, where None, left out."""
    fields = {key: value for key, value in {**MINE["Mine-1"], **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump({"Mine-1": fields}, sort_keys=False))
    return path


def test_ones_own_table_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = table(tmp_path / "mine.yaml")
    assert gpu("mine-1", file).memory_gb == 10
    assert parse("4xMINE 1", file).nodes == 2
    monkeypatch.setenv("LIFECYCLE_GPUS", str(file))
    assert list(kinds()) == ["Mine-1"]
    with pytest.raises(UserError, match=f"no GPU 'h100' in {re.escape(str(file))}; there are: Mine-1"):
        gpu("h100")
    assert gpu("h100", TABLE).memory_gb == 80
    monkeypatch.setenv("LIFECYCLE_GPUS", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"none.yaml: cannot be read: No such file .*LIFECYCLE_GPUS names it"):
        gpu("h100")


def test_a_table_that_changed_is_read_again(tmp_path: Path) -> None:
    file = table(tmp_path / "mine.yaml")
    assert gpu("mine-1", file).power_w == 50
    table(file, power_w=60)
    os.utime(file, ns=(1, 1))
    assert gpu("mine-1", file).power_w == 60


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({"memory_gb": -3}, 2, "Mine-1.memory_gb: -3 is out of range"),
        ({"memory_gb": "80"}, 2, "Mine-1.memory_gb: '80' is not a number"),
        ({"bandwidth_gb_s": float("nan")}, 3, "Mine-1.bandwidth_gb_s: nan is not a number"),
        ({"bandwidth_gb_s": True}, 3, "Mine-1.bandwidth_gb_s: True is not a number"),
        ({"tflops": {}}, 4, "Mine-1.tflops: expected TFLOP/s for each precision"),
        ({"tflops": {"bf61": 5}}, 4, "Mine-1.tflops: 'bf61' is no precision"),
        ({"tflops": {"bf16": 0}}, 5, "Mine-1.tflops.bf16: 0 is out of range"),
        ({"gpus_per_node": 0}, 9, "Mine-1.gpus_per_node: 0 is out of range"),
        ({"gpus_per_node": 1.5}, 9, "Mine-1.gpus_per_node: 1.5 is not a number of GPUs"),
        ({"power_w": None}, 1, "Mine-1.power_w: is missing"),
        ({"aliases": "m1"}, 14, "Mine-1.aliases: 'm1' is not a list"),
        ({"price": 3}, 14, "Mine-1.price: is no field of a GPU; there are: aliases"),
    ],
)
def test_a_mistake_in_a_table_is_told_with_its_line_and_field(
    tmp_path: Path, changes: dict[str, object], line: int, words: str
) -> None:
    file = table(tmp_path / "mine.yaml", **changes)
    with pytest.raises(UserError) as told:
        gpu("mine-1", file)
    assert str(told.value).startswith(f"{file}:{line}: {words}")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "expected kinds of GPUs"),
        ("- H100\n", "expected kinds of GPUs"),
        ("H100: 80\n", ":1: H100: expected the fields of a GPU below its name"),
        ("H100: {\n", "this is not YAML"),
        ("\x00", "cannot be read"),
    ],
)
def test_a_table_of_no_use_is_told(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError) as told:
        kinds(file)
    assert str(told.value).startswith(str(file))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_name_means_one_kind(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({**MINE, "Mine-2": {**MINE["Mine-1"], "aliases": ["mine 1"]}}, sort_keys=False)
    )
    with pytest.raises(UserError, match=r"Mine-2\.aliases: 'mine 1' already means Mine-1"):
        kinds(file)


def test_every_field_of_the_table_is_explained_at_its_head() -> None:
    head = TABLE.read_text().split("\nH100-80GB:")[0]
    fields = (*hardware.NUMBERS, *hardware.COUNTS, "compute", "tflops")
    assert [key for key in fields if key not in head] == []


def test_memory_is_what_a_driver_reports() -> None:
    """``nvidia-smi``: an H100 81,559 MiB, an H200 143,771 MiB, an L4 23,034 MiB."""
    for name, mib in (("h100", 81_559), ("h200", 143_771), ("l4", 23_034)):
        assert gpu(name).memory_bytes == pytest.approx(mib * 2**20, rel=0.005)
