"""Memory of training, against published formulas, configurations that ran and configurations that cannot."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.plan import hardware, shapes
from pipeline.plan.training import activations, eager, memory, published, verdict
from pipeline.plan.training.layout import Layout, Work
from pipeline.plan.training.settings import read
from pipeline.plan.training.states import states
from pipeline.toolchains import ROOT

H100 = hardware.gpu("H100-80GB")
LLAMA = published.models()


def llama(**changed: object) -> shapes.Shape:
    """A small Llama, with the fields that a test is about."""
    config = {
        "model_type": "llama",
        "vocab_size": 1000,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
    }
    return shapes.from_config({**config, **changed}, "a test")


def judged(name: str, layout: Layout, work: Work) -> verdict.Verdict:
    return verdict.judge(memory.need(LLAMA[name], layout, work).total, H100)


@pytest.mark.parametrize(
    "row",
    [row for row in published.rows() if row.gpu == "H100-80GB" and row.configuration < 100],
    ids=lambda row: row.name,
)
def test_published_configurations_of_dense_models_that_ran_are_feasible(row: published.Row) -> None:
    """Not those with experts: what they recompute, without which they would not fit, is not published with them."""
    assert verdict.judge(memory.need(row.shape, row.layout, row.work).total, H100).feasible


@pytest.mark.parametrize(
    ("name", "layout", "gigabytes"),  # as the reference has them, and a few percent for what it leaves out
    [
        ("llama3-70b", Layout(8, tensor=8, sequence_parallel=True, global_batch=128), 170),
        ("llama3-8b", Layout(1, global_batch=128), 162),
        (
            "llama3.1-405b",
            Layout(64, tensor=8, pipeline=8, virtual=8, sequence_parallel=True, global_batch=128),
            151,
        ),
    ],
)
def test_impossible_configurations_are_refused_at_about_the_stated_size(
    name: str, layout: Layout, gigabytes: float
) -> None:
    found = memory.need(LLAMA[name], layout, Work("sft", length=4096))
    assert verdict.judge(found.total, H100).word == verdict.NOT
    assert found.bytes / 1e9 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize(
    ("sharding", "gigabytes"), [("none", 120), ("zero1", 31.4), ("zero2", 16.6), ("zero3", 1.9)]
)
def test_stages_of_zero_cost_what_their_paper_says(sharding: str, gigabytes: float) -> None:
    """7.5 billion parameters on 64 ranks with 12 bytes of optimiser states (figure 1)."""
    shape = llama(
        hidden_size=4096,
        intermediate_size=16384,
        num_hidden_layers=27,
        num_attention_heads=32,
        num_key_value_heads=32,
    )
    layout = Layout(64, sharding=sharding, global_batch=64)
    found = states(shape, layout, Work(states="zero")).total * 7.5e9 / shape.parameters
    assert found / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_mixed_precision_is_18_bytes_and_6_and_12_over_the_ranks_with_a_distributed_optimiser() -> None:
    shape, work = LLAMA["llama3-8b"], Work()
    plain = states(shape, Layout(8, global_batch=8), work).total
    assert plain == pytest.approx(18 * shape.parameters)
    cut = states(shape, Layout(8, context=2, sharding="zero1", global_batch=8), work).total
    assert cut == pytest.approx((6 + 12 / 8) * shape.parameters)  # DP 4 x CP 2


def test_adapters_leave_two_frozen_bytes_and_18_of_their_own() -> None:
    shape, work = LLAMA["llama3-8b"], Work("sft", peft="lora", rank=8)
    own = shape.adapter_parameters(8, ("*_proj",))
    found = states(shape, Layout(1), work)
    assert found.weights == pytest.approx(2 * shape.parameters)
    assert found.total - found.weights == pytest.approx(18 * own)


def test_a_live_reference_adds_two_bytes_and_none_where_the_adapter_can_be_turned_off() -> None:
    shape = LLAMA["llama3-8b"]
    for reference, peft, bytes_each in (("live", "none", 2), ("precomputed", "none", 0), ("live", "lora", 0)):
        work = Work("dpo", reference=reference, peft=peft)
        assert states(shape, Layout(1), work).reference == pytest.approx(bytes_each * shape.parameters)


def test_a_pair_is_two_sequences_and_ktos_are_three() -> None:
    positions = [
        activations.tokens(Layout(), Work(kind)) for kind in ("sft", "dpo", "simpo", "orpo", "reward", "kto")
    ]
    assert positions == [4096, 8192, 8192, 8192, 8192, 3 * 4096]


def test_activations_are_korthikantis_where_his_model_is_meant() -> None:
    """34 sbh a layer (equation 2 without attention's scores), 2 sbh of it dropout's masks, which Llama has none of; the
    scores are 5 a s / h more, and tensor parallelism with sequence parallelism divides all."""
    shape, length = llama(), 512
    work = Work(length=length)
    sbh = length * shape.width * shape.depth
    lse = 4 * shape.heads * length * shape.depth  # a flash kernel's normalisers
    assert activations.activations(shape, Layout(), work) == (34 - 2) * sbh + lse
    scores = activations.activations(shape, Layout(), dataclasses.replace(work, flash=False))
    assert scores == (34 - 2 + 5 * shape.heads * length / shape.width) * sbh + lse
    whole, cut = (
        activations.activations(shape, Layout(8, tensor=4, sequence_parallel=cut, global_batch=2), work)
        for cut in (False, True)
    )
    assert cut == ((34 - 2) * sbh + lse) / 4
    assert whole == pytest.approx((8 + (34 - 2 - 8) / 4) * sbh + lse)


def test_the_first_pipeline_stage_holds_more_by_the_published_factor() -> None:
    shape = llama(num_hidden_layers=8)
    work = Work(length=512)
    one = activations.activations(shape, Layout(global_batch=64), work)
    for stages, pieces in ((4, 1), (4, 2), (2, 4)):
        layout = Layout(stages, pipeline=stages, virtual=pieces, global_batch=64)
        factor = 1 + (stages - 1) / (stages * pieces)
        assert activations.activations(shape, layout, work) == pytest.approx(one * factor)
    few = Layout(4, pipeline=4, global_batch=1)
    assert activations.activations(shape, few, work) == pytest.approx(one / 4)  # one micro batch in flight


def test_recomputation_keeps_the_stream_between_layers_and_one_layer() -> None:
    shape, work = LLAMA["llama3-8b"], Work(length=1024)
    none, full = (activations.activations(shape, Layout(recompute=mode), work) for mode in ("none", "full"))
    assert full == pytest.approx(1024 * 2 * shape.width * shape.depth + none / shape.depth)


def test_experts_are_spread_over_expert_ranks_and_their_states_over_those_that_hold_the_same() -> None:
    shape, work = LLAMA["qwen3-30b-a3b"], Work()
    routed = 48 * 128 * 3 * 2048 * 768
    whole = states(shape, Layout(8, expert=1, global_batch=8), work).weights
    spread = states(shape, Layout(8, expert=8, global_batch=8), work).weights
    assert whole - spread == pytest.approx(2 * routed * 7 / 8)
    sharded = states(shape, Layout(8, expert=4, sharding="zero1", global_batch=8), work)
    assert sharded.optimiser == pytest.approx(8 * ((shape.parameters - routed) / 8 + routed / 4 / 2))


@pytest.mark.parametrize("name", ["deepseek-v3", "qwen3-235b-a22b"])
def test_latent_attention_and_experts_have_activations_too(name: str) -> None:
    shape = LLAMA[name]
    kept = activations.forward_bytes(shape, Layout(), Work()) / shape.depth / shape.width
    assert 20 < kept < 120  # bytes x width: a dense layer has 32


def test_the_engines_own_states_are_those_of_the_old_estimate() -> None:
    """fp32 weights under autocast 4 + 4 + 8, bf16 weights 2 + 2 + 4, and FSDP2 divides them."""
    loaded = recipe.load("llama-8b", ROOT, "train.peft=none", "local").settings
    shape = shapes.of_recipe(loaded.model)
    for precision, bytes_each in (("bf16", 16), ("bf16-weights", 8)):
        for strategy, gpus, ranks in (("ddp", 2, 1), ("fsdp2", 8, 8)):
            loaded.train.precision, loaded.train.parallel.strategy = precision, strategy
            layout, work = read("train", loaded.train, loaded.model.context, gpus)
            assert states(shape, layout, work).total == pytest.approx(bytes_each * shape.parameters / ranks)


def test_items_add_up_and_each_says_where_it_is_from() -> None:
    found = memory.need(LLAMA["llama3-70b"], Layout(64, tensor=8, pipeline=4, global_batch=64), Work())
    assert found.total.value == pytest.approx(sum(item.value for item in found.items))
    assert [item.name for item in found.items] == [
        "weights",
        "gradients",
        "master weights",
        "optimiser states",
        "activations",
        "fragmentation",
        "CUDA context",
    ]  # what is nothing here is left out: the loss is on the last stage, which is not the fullest
    assert all(item.value > 0 for item in found.items)
    assert all(item.formula for item in found.items)
    assert found.stage == "first pipeline stage"
    assert "18" not in str(found.item("weights"))


layouts = st.builds(
    Layout,
    gpus=st.sampled_from([1, 2, 4, 8, 16, 64]),
    tensor=st.sampled_from([1, 2, 4, 8]),
    pipeline=st.sampled_from([1, 2, 4]),
    context=st.sampled_from([1, 2]),
    global_batch=st.just(256),
)
works = st.builds(
    Work,
    st.sampled_from(["pretrain", "sft", "dpo", "kto"]),
    length=st.sampled_from([512, 4096]),
    precision=st.sampled_from(["bf16", "fp32", "bf16-weights"]),
    states=st.sampled_from(["megatron", "automodel", "zero"]),
    kernels=st.sampled_from(["eager", "fused"]),
    peft=st.sampled_from(["none", "lora"]),
    reference=st.sampled_from(["none", "live"]),
)


@settings(max_examples=150, deadline=None)
@drawn(layouts, works)
def test_more_sharding_never_needs_more_for_the_models_states(layout: Layout, work: Work) -> None:
    shape = LLAMA["llama3-8b"]
    if layout.fault(shape, work):
        return
    totals = [
        states(shape, dataclasses.replace(layout, sharding=sharding), work).total
        for sharding in ("none", "zero1", "zero2", "zero3")
    ]
    assert totals == sorted(totals, reverse=True)


@settings(max_examples=150, deadline=None)
@drawn(layouts, works, st.sampled_from(["none", "zero1", "zero3"]))
def test_recomputing_more_or_a_smaller_micro_batch_never_needs_more(
    layout: Layout, work: Work, sharding: str
) -> None:
    shape = LLAMA["llama3-8b"]
    if layout.fault(shape, work):
        return
    needs = [
        memory.need(
            shape, dataclasses.replace(layout, sharding=sharding, micro_batch=size, recompute=mode), work
        ).bytes
        for size, mode in ((2, "none"), (1, "none"), (1, "full"))
        if 256 % (size * layout.data) == 0
    ]
    assert needs == sorted(needs, reverse=True)
    assert all(size > 0 for size in needs)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"gpus": 0}, "gpus = 0: give at least 1"),
        ({"micro_batch": -1}, "micro batch = -1: give at least 1"),
        ({"tensor": 3, "gpus": 3}, "tensor 3 does not divide the 32 attention heads"),
        ({"gpus": 6, "tensor": 4}, "needs a multiple of 4 GPUs; there are 6"),
        ({"pipeline": 8, "virtual": 8}, "needs as many layers; there are 32"),
        ({"virtual": 2}, r"virtual stages \(2\) need pipeline above 1"),
        ({"context": 8, "length": 4100}, "do not divide 4100 tokens"),
        ({"expert": 8}, "has no experts"),
        ({"micro_batch": 48}, "what can be: a divisor of 16 as the micro batch"),
        (
            {"gpus": 16, "pipeline": 4, "virtual": 2, "global_batch": 8},
            "micro batches in multiples of pipeline 4",
        ),
        ({"sharding": "zero9"}, "choose one of none, zero1, zero2, zero3"),
        ({"recompute": "some"}, "choose one of none, selective, full"),
        ({"length": -5}, "a sequence of -5 tokens"),
        ({"kind": "dreaming"}, "choose one of pretrain, sft"),
        ({"precision": "int3"}, "choose one of bf16"),
        ({"fill": 0.0}, "above 0, up to 1"),
    ],
)
def test_an_impossible_layout_is_refused_in_words(changed: dict[str, object], told: str) -> None:
    fields = {"gpus": 8, "global_batch": 128, **changed}
    work = {name: fields.pop(name) for name in ("length", "kind", "precision", "fill") if name in fields}
    with pytest.raises(UserError, match=told):
        memory.need(LLAMA["llama3-8b"], Layout(**fields), Work(**work))  # type: ignore[arg-type]


@pytest.mark.parametrize("stage", ["train", "align"])
@pytest.mark.parametrize("name", ["llama-1b", "llama-8b", "llama-70b", "llama-405b"])
def test_the_general_model_and_the_engines_own_agree(name: str, stage: str) -> None:
    """Two derivations: by layouts for any model, and operation by operation for the engine's Llama (held to real steps)."""
    loaded = recipe.load(name, ROOT, "", "local").settings
    settings, gpus = getattr(loaded, stage), loaded.launch.gpus
    layout, work = read(stage, settings, loaded.model.context, gpus)
    found = memory.need(shapes.of_recipe(loaded.model), layout, work)
    margins = sum(item.value for item in found.items if item.name in ("fragmentation", "CUDA context"))
    assert found.bytes - margins == pytest.approx(eager.footprint(loaded.model, settings, gpus).peak, rel=0.1)
