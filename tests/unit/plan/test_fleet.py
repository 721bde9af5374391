"""The serving plan, against numbers worked out by hand and a simulation of the queue, step by step."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.plan.quantity import given
from pipeline.plan.serving import choices, load
from pipeline.plan.serving.engine import PEAK, PRECISIONS, RESERVED, Efficiency, Engine
from pipeline.plan.serving.fleet import Traffic, plan
from tests.unit.plan.serving_tools import FlatShape, RoundGpu, Verbs, verbs_fixture

verbs = pytest.fixture(verbs_fixture)
HALF = Efficiency(0.5, 0.5, 0.5, 1e-4)
LLAMA_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


def engine(
    tensor: int = 1, precision: str = "bf16", efficiency: Efficiency = PEAK, **changes: object
) -> Engine:
    shape = dataclasses.replace(FlatShape(), **changes)  # type: ignore[arg-type]
    return Engine(shape, RoundGpu(), PRECISIONS[precision], precision, tensor, efficiency)


# ------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize(
    ("precision", "layers"),
    [("bf16", 20e9), ("fp8", 10e9), ("int4-awq", 5.15625e9), ("int8", 10e9)],
)
def test_weights_are_layers_in_their_precision_and_the_rest_in_bf16(precision: str, layers: float) -> None:
    found = dataclasses.replace(engine(), precision=PRECISIONS[precision])
    assert found.weight_bytes == pytest.approx(layers + 2e9 * 2)


def test_the_largest_batch_is_what_the_room_beside_the_weights_holds() -> None:
    found = engine(tensor=2)
    room = 0.95 * (0.99 * 100 * 2**30 - RESERVED - 12e9)
    assert found.cache_room == pytest.approx(room)
    # 1000 values a token of 2 bytes, divided by two GPUs: a request of 10,000 tokens takes 10 MB of each.
    assert found.cache_bytes(10_000) == pytest.approx(10e6)
    assert engine(tensor=2, cached=10_000.0).largest_batch(10_000) == int(room / 100e6) == 867
    assert found.largest_batch(10) == 4096


def test_more_gpus_than_key_value_heads_keep_copies_of_the_cache() -> None:
    assert (
        engine(tensor=8).cache_bytes(100)
        == engine(tensor=4).cache_bytes(100)
        == engine().cache_bytes(100) / 4
    )


def test_latent_attention_is_kept_whole_by_every_gpu() -> None:
    assert engine(tensor=8, family="deepseek_v3").cache_bytes(100) == engine().cache_bytes(100)


# --------------------------------------------------------------------------------------------------- step


def test_decoding_one_request_is_reading_the_weights_and_its_cache() -> None:
    step = engine().step(1, 0, 1000, 1)
    assert step.layers == pytest.approx(20e9 / 1e12)
    assert step.head == pytest.approx(2e9 / 1e12)
    assert step.attention == pytest.approx(1000 * 1000 * 2 / 1e12)
    assert step.network == 0


def test_a_long_prompt_is_bound_by_computing() -> None:
    step = engine().step(0, 10_000, 1, 10_000)
    assert step.layers == pytest.approx(2 * 10e9 * 10_000 / 100e12)
    assert step.head == pytest.approx(2e9 / 1e12)  # one token is sampled: reading the matrix is longer
    assert step.attention == pytest.approx(10_000 * 1e6 * 10_000 / 100e12)


def test_fp8_computes_twice_as_fast_and_its_output_matrix_does_not() -> None:
    wide, narrow = engine().step(0, 10_000, 1, 1), engine(precision="fp8").step(0, 10_000, 1, 1)
    assert narrow.layers == pytest.approx(wide.layers / 2)
    assert narrow.head == pytest.approx(wide.head)


def test_all_reduces_move_the_activations_and_wait() -> None:
    # Two in each of 10 layers; 500 tokens x 1000 values x 2 bytes; 2 x 3/4 of it over half of 100 GB/s.
    step = engine(tensor=4, efficiency=HALF).step(500, 0, 1, 1)
    assert step.network == pytest.approx(10 * (2 * 500 * 1000 * 2 * 1.5 / 50e9 + 1e-4))


def test_few_tokens_read_few_experts() -> None:
    sparse = {"active_layer_parameters": 2_500_000_000}
    one = engine(**sparse).step(1, 0, 1, 1).layers
    many = engine(**sparse).step(64, 0, 1, 1).layers
    assert one == pytest.approx(0.25 * 20e9 / 1e12)
    assert many == pytest.approx(20e9 / 1e12, rel=1e-6)


def test_tensor_parallelism_is_ever_less_efficient() -> None:
    share = [
        engine(tensor=tensor, efficiency=HALF).throughput(1000, 1000)
        / engine(tensor=tensor).throughput(1000, 1000)
        for tensor in (1, 2, 4, 8)
    ]
    assert share == sorted(share, reverse=True)
    assert share[0] == pytest.approx(0.5)


# --------------------------------------------------------------------------------------------------- load


def simulated(served: Engine, rate: float, input: int, output: int, requests: int) -> tuple[float, float]:
    """Mean time to first token and inter-token latency of a replica, step by step, with random arrivals."""
    dice = random.Random(1)
    arrivals, clock = [], 0.0
    for _ in range(requests):
        clock += dice.expovariate(rate)
        arrivals.append(clock)
    now, waiting, running = 0.0, 0, {}
    first, between = [], []
    while len(between) < requests:
        fresh = []
        while waiting < requests and arrivals[waiting] <= now:
            fresh.append(waiting)
            waiting += 1
        if not fresh and not running:
            now = arrivals[waiting]
            continue
        context = input + output // 2
        now += served.step(len(running), len(fresh) * input, context, input).total
        for one in list(running):
            running[one][0] -= 1
            if not running[one][0]:
                between.append((now - running.pop(one)[1]) / (output - 1))
        for one in fresh:
            first.append(now - arrivals[one])
            running[one] = [output - 1, now]
    return statistics.mean(first), statistics.mean(between)


@pytest.mark.parametrize("utilisation", [0.1, 0.4, 0.7])
@pytest.mark.parametrize(("input", "output"), [(600, 100), (100, 150), (2000, 20)])
def test_latencies_are_those_of_a_simulated_queue(utilisation: float, input: int, output: int) -> None:
    served = engine(efficiency=HALF)
    rate = utilisation * load.most(served, input, output)
    found = load.under(served, rate, input, output)
    assert found is not None
    first, between = simulated(served, rate, input, output, 1500)
    assert found.between == pytest.approx(between, rel=0.15)
    assert found.first_token == pytest.approx(first, rel=0.15)


def test_requests_at_once_follow_littles_law() -> None:
    found = load.under(engine(efficiency=HALF), 3.0, 600, 100)
    assert found is not None
    assert found.running == pytest.approx(3.0 * 100 * found.mean_step, rel=1e-6)
    assert found.mean_step * (1 - 3.0 * found.prompt) == pytest.approx(found.decode.total)


def test_more_than_a_replica_can_take_has_no_steady_state() -> None:
    served = engine(efficiency=HALF)
    limit = load.most(served, 600, 100)
    assert load.under(served, 1.01 * limit, 600, 100) is None
    assert load.under(served, 0.99 * limit, 600, 100) is not None


@pytest.mark.parametrize(
    ("first", "between"), [(math.inf, math.inf), (0.4, math.inf), (math.inf, 0.06), (0.4, 0.06)]
)
def test_the_highest_rate_keeps_every_bound_and_no_higher_one_does(first: float, between: float) -> None:
    served = engine(efficiency=HALF)
    rate = load.highest_rate(served, 600, 100, first, between, 0.8)
    kept = load.under(served, rate, 600, 100)
    assert kept is not None
    assert kept.first_token <= first
    assert kept.between <= between
    assert kept.utilisation <= 0.8 + 1e-9
    more = load.under(served, 1.01 * rate, 600, 100)
    assert more is None or more.first_token > first or more.between > between or more.utilisation > 0.8


# -------------------------------------------------------------------------------------------------- fleet


def test_the_plan_has_the_fewest_gpus_that_keep_the_targets() -> None:
    traffic = Traffic(50.0, 600, 100, between=0.055)
    tried = choices.engines(FlatShape(), RoundGpu(), PRECISIONS["bf16"], "bf16", HALF)
    found = plan(traffic, tried, given("price", 2.0, "USD"))
    assert [one.gpus for one in found] == sorted(one.gpus for one in found)
    for one in found:
        assert one.load.between <= 0.055
        assert one.load.rate * one.replicas == pytest.approx(50.0)
        assert one.cost.value == 2.0 * one.gpus
        if one.replicas > 1:  # one replica fewer would break a bound
            worse = load.under(one.engine, 50.0 / (one.replicas - 1), 600, 100)
            assert worse is None or worse.between > 0.055 or worse.utilisation > 0.8


def test_latencies_that_no_load_keeps_are_refused_with_the_best_there_are() -> None:
    tried = choices.engines(FlatShape(), RoundGpu(), PRECISIONS["bf16"], "bf16", HALF)
    with pytest.raises(UserError, match=r"first token after \d+ ms .* next every [\d.]+ ms"):
        plan(Traffic(1.0, 600, 100, between=0.001), tried, given("price", 2.0, "USD"))


def test_what_does_not_fit_is_refused_with_the_nearest_that_does() -> None:
    large = FlatShape(parameters=62_000_000_000, layer_parameters=60_000_000_000)
    tried = choices.engines(large, RoundGpu(), PRECISIONS["bf16"], "bf16", HALF, tensor=1)
    with pytest.raises(UserError) as refused:
        choices.holding(tried, 1000, [RoundGpu("smaller", memory_gb=40.0), RoundGpu()])
    told = str(refused.value)
    assert "the weights take 124.0 GB of each GPU, and 103.3 GB of its memory can be used" in told
    fits = told.partition("What fits: ")[2].rstrip(".").split("; ")
    assert fits[0] == "--gpu round --precision bf16 --tensor-parallel 2"
    assert fits[1] == "--gpu smaller --precision bf16 --tensor-parallel 4"


def test_a_cache_too_large_is_told_from_weights_too_large() -> None:
    tried = choices.engines(FlatShape(cached=1e8), RoundGpu(), PRECISIONS["bf16"], "bf16", HALF, tensor=1)
    with pytest.raises(UserError, match=r"the cache of one request of 1,000 tokens takes 200\.00 GB"):
        choices.holding(tried, 1000, [RoundGpu()])


# --------------------------------------------------------------------------------------------------- verb


@pytest.fixture
def config(tmp_path: Path) -> str:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(LLAMA_8B))
    return str(file)


WORDS = "--gpu H100-80GB --precision fp8 --rate 20 --input 1000 --output 200 --price 2"


def test_the_verb_plans_a_published_model(verbs: Verbs, config: str) -> None:
    found = verbs.json("fleet", config, *WORDS.split())["by name"]
    assert found["weights"] == pytest.approx(
        8.03e9 + 1.05e9, rel=0.01
    )  # embeddings and output matrix stay in bf16
    assert found["cache of a request"] == 1200 * 131072 / 2  # 131,072 bytes a token in bf16, here fp8
    assert found["GPUs"] == 1
    assert found["cost per million output tokens"] == pytest.approx(2 / (20 * 200 * 3600) * 1e6)
    assert found["cost per million tokens in and out"] == pytest.approx(2 / (20 * 1200 * 3600) * 1e6)


def test_every_prediction_stands_beside_its_held_out_error(verbs: Verbs, config: str) -> None:
    status, out, error = verbs("fleet", config, *WORDS.split())
    assert status == 0, error
    for name in (
        "time to first token",
        "inter-token latency",
        "most output tokens/s of a GPU",
        "GPUs",
        "cost per million",
    ):
        line = next(line for line in out.splitlines() if line.startswith(f"  {name}"))
        assert "held out: mean of" in line


def test_a_replica_with_little_room_is_called_tight(verbs: Verbs, config: str) -> None:
    _, roomy, _ = verbs("fleet", config, *WORDS.split())
    _, tight, _ = verbs(
        "fleet",
        config,
        *WORDS.replace("H100-80GB --precision fp8", "L4 --tensor-parallel 1 --precision bf16")
        .replace("20", "1")
        .split(),
    )
    assert "tight" not in roomy
    assert "tight: " in tight


def test_what_nothing_was_measured_of_is_said(verbs: Verbs, config: str) -> None:
    _, out, _ = verbs("fleet", config, *WORDS.replace("fp8", "nvfp4").replace("H100-80GB", "B200").split())
    assert "none of them with B200 or nvfp4" in out


def test_derivations_go_down_to_the_fitted_constants(verbs: Verbs, config: str) -> None:
    _, out, _ = verbs("fleet", config, *WORDS.split(), "--explain", "inter-token")
    for words in (
        "u = r e",
        "b cache / (bandwidth memory)",
        "bandwidth: 3.35 TB/s",
        "share of the bandwidth; fitted",
    ):
        assert words in out


def test_a_recipe_may_be_named(verbs: Verbs) -> None:
    found = verbs.json("fleet", "llama-tiny", *WORDS.replace("1000", "100").replace("200", "50").split())
    assert "llama-tiny" in found["title"]


def test_a_recipe_that_serves_nothing_is_refused(verbs: Verbs) -> None:
    status, out, error = verbs("fleet", "curate-web", *WORDS.split())
    assert (status, out) == (2, "")
    assert "curate-web serves no model: it has neither export nor deploy among its stages (curate)" in error


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("--rate 20=--rate 0", "--rate 0: must be more than zero"),
        ("--rate 20=--rate 1e30", "--rate 1e+30: must be from 1e-09 to 1e+09 requests/s"),
        ("--input 1000=--input 1e300", "--input 1e+300: must be from 1 to 1e+09 tokens"),
        (
            "--rate 20=--rate 20 --tensor-parallel 32",
            "--tensor-parallel 32: at most 8 of H100-80GB are joined",
        ),
        ("--rate 20=--rate nan", "--rate nan: not a number"),
        ("--rate 20=--rate 20 --tensor-parallel 0", "--tensor-parallel 0: must divide the 32 heads"),
        ("--rate 20=--rate 20 --tensor-parallel 3", "--tensor-parallel 3: must divide the 32 heads"),
        ("--rate 20=--rate 20 --utilisation 1.5", "--utilisation 1.5: must be a share"),
        ("--rate 20=--rate 20 --utilisation 1", "--utilisation 1: at most 0.99"),
        ("--rate 20=--rate 20 --ttft-ms -5", "--ttft-ms -5: must be more than zero"),
        ("--rate 20=--rate 20 --itl-ms 0.01", "cannot keep these latencies at any load"),
        ("--input 1000=--input 1.5", "--input 1.5: must be a whole number"),
        ("--input 1000=--input 131000", "131,200 tokens, and the context of"),
        ("H100-80GB=H900", "there is no GPU 'H900'"),
        ("H100-80GB=A100-80GB", "A100-80GB does not compute in fp8; it does in bf16"),
        ("--price 2=--price 0", "--price 0: must be more than zero"),
    ],
)
def test_nonsense_gives_one_clear_line_and_exit_status_2(
    verbs: Verbs, config: str, change: str, told: str
) -> None:
    old, new = change.split("=")
    status, out, error = verbs("fleet", config, *WORDS.replace(old, new).split())
    assert (status, out) == (2, "")
    assert told in error
    assert error.count("\n") == 1


def test_a_model_too_large_for_any_machine_of_the_kind_is_refused_with_what_fits(
    verbs: Verbs, tmp_path: Path
) -> None:
    file = tmp_path / "config.json"
    large = {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
    }
    file.write_text(json.dumps(LLAMA_8B | large))
    words = WORDS.replace("fp8", "bf16").replace("--rate 20", "--rate 1").split()
    status, _, error = verbs("fleet", str(file), *words)
    assert status == 2
    assert "What fits: --gpu H100-80GB --precision fp8 --tensor-parallel 8;" in error
    advice = error.partition("What fits: ")[2].partition(";")[0].split()
    status, out, error = verbs("fleet", str(file), *words, *advice)
    assert status == 0, error
    assert "8 x H100-80GB" in out
