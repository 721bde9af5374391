"""Shapes: published counts, caches and accounts of FLOP; what makes no sense is told in one line.

That the counts are those of real modules is tested where transformers is (tests/stages/core/test_shapes.py).
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.plan.shapes import SUPPORTED, Shape, from_config, of_recipe, read
from pipeline.plan.shapes.dense import positions_seen
from pipeline.plan.shapes.statespace import StateSpace
from pipeline.recipe import load
from pipeline.schema import Model
from tests.model_configs import ODD, PUBLISHED, Config

ROOT = Path(__file__).resolve().parents[3]
LLAMA = PUBLISHED["Llama-3-8B"][0]


def shape_of(name: str) -> Shape:
    return from_config(PUBLISHED[name][0], name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_as_published(name: str) -> None:
    assert shape_of(name).parameters == PUBLISHED[name][1]


@pytest.mark.parametrize(
    ("name", "billions", "source"),
    [
        ("Mixtral-8x7B", 12.9, "Jiang et al. 2024, section 1: 13B active; the model card: 12.9B"),
        ("DeepSeek-V3", 37.0, "arXiv 2412.19437, abstract"),
        ("Qwen3-30B-A3B", 3.3, "Qwen3's model card"),
    ],
)
def test_active_parameters_are_as_published(name: str, billions: float, source: str) -> None:
    shape = shape_of(name)
    assert shape.active_parameters / 1e9 == pytest.approx(billions, rel=0.02), source
    assert shape.active_layer_parameters < shape.layer_parameters


@pytest.mark.parametrize(
    ("name", "total"),
    [("Llama-3-8B", 131072), ("Llama-3-70B", 327680), ("Llama-3.1-405B", 516096), ("DeepSeek-V3", 70272)],
)
def test_bytes_of_a_token_in_the_cache_are_as_published(name: str, total: int) -> None:
    # DeepSeek-V3: (512 + 64) values of 2 bytes in each of 61 layers, "70 KB" (arXiv 2505.09343, table 1).
    shape = shape_of(name)
    assert shape.cache_bytes_per_token() == total
    assert shape.cache_bytes_per_token(1.0) == total / 2
    assert shape.cache_bytes(1000) == 1000 * total


def test_a_window_bounds_the_cache_of_its_layers() -> None:
    gemma = shape_of("gemma-3-1b")  # 22 of 26 layers see 512 tokens; a layer keeps 2 x 256 values
    assert [layer.mixer.window for layer in gemma.layers[:6]] == [512] * 5 + [None]  # type: ignore[union-attr]
    assert gemma.cache_bytes(512) == 26 * 512 * 2 * 256 * 2
    assert gemma.cache_bytes(10_000) == (22 * 512 + 4 * 10_000) * 2 * 256 * 2


def test_a_state_space_keeps_as_much_of_a_long_sequence_as_of_a_short_one() -> None:
    mamba = shape_of("Mamba-Codestral-7B")
    state, convolution = 64 * 128 * 64 * 128 * 4, 64 * (8192 + 2 * 8 * 128) * 4 * 2
    assert mamba.cache_bytes(1) == mamba.cache_bytes(1_000_000) == state + convolution
    assert (mamba.cache_bytes(0), mamba.cache_bytes_per_token(), mamba.context) == (0, 0, None)
    assert (mamba.heads, mamba.kv_heads, mamba.head_size, mamba.feed_forward) == (0, 0, 0, 0)
    hybrid = shape_of("Bamba-9B")
    assert hybrid.cache_bytes_per_token() == 3 * 2 * 8 * 128 * 2  # three attention layers


@pytest.mark.parametrize(
    ("name", "length", "causal", "speed", "published"),
    [  # NeMo's performance summaries: tokens/s and TFLOP/s of a GPU
        ("Llama-3-8B", 8192, False, 11883, 688),
        ("Llama-3-70B", 8192, False, 1549, 746),
        ("Llama-3-8B", 8192, True, 14079, 725),
        ("Llama-3-70B", 8192, True, 1619, 727),
        ("Llama-3.1-405B", 8192, True, 302, 763),
        ("Llama-3-8B", 8192, True, 14451, 744),
    ],
)
def test_flops_of_training_give_the_published_throughput(
    name: str, length: int, causal: bool, speed: float, published: float
) -> None:
    found = shape_of(name).training_flops(length, causal) * speed / 1e12
    assert found == pytest.approx(published, rel=0.005)


def test_attention_of_a_llama_costs_four_values_a_head_and_position() -> None:
    shape = shape_of("Llama-3-8B")
    assert shape.attention_flops(8192, causal=False) == 4 * 32 * 4096 * 8192
    assert shape.attention_flops(8192) == 2 * 32 * 4096 * 8192
    assert shape.forward_flops(8192) == 2 * (8_030_261_248 - 128256 * 4096 - 65 * 4096) + 2 * 32 * 4096 * 8192
    assert shape.training_flops(100) == 3 * shape.forward_flops(100)


@pytest.mark.parametrize(("length", "window"), [(1, None), (12, None), (12, 5), (12, 12), (12, 100)])
def test_positions_seen_are_those_of_a_triangle_with_a_band(length: int, window: int | None) -> None:
    pairs = sum(min(at + 1, window or length) for at in range(length))
    reach = min(length, window or length)
    assert length * positions_seen(length, window, causal=True) == pytest.approx(pairs - reach / 2)
    assert positions_seen(length, window, causal=False) == reach


def test_a_scan_costs_what_its_paper_says() -> None:
    # 2 heads of 3 channels, states of 5, one group, 2 taps, chunks of 4.  By hand: convolution 2 x 2 x (6 + 10) = 64;
    # inside a chunk 4 x (5 + 6) = 44; states in and out 2 x 2 x 30 = 120, carried 2 x 30 / 4 = 15.
    space = StateSpace(8, heads=2, head_size=3, state=5, groups=1, kernel=2, chunk=4)
    assert space.scan_flops(8, causal=True) == 64 + 44 + 120 + 15
    # Whole chunks, scores for each head: 2 x 4 x (10 + 6) = 128; carried by a product of 3 with 3: 2 x 9 x 30 / 8.
    assert space.scan_flops(8, causal=False) == 64 + 128 + 120 + 67.5


@pytest.mark.parametrize(
    ("name", "targets", "sides"),
    [
        ("Llama-3-8B", ["*_proj"], 32 * (2 * 8192 + 2 * 5120 + 3 * 18432)),
        ("Llama-3-8B", ["q_proj", "*.v_proj"], 32 * (8192 + 5120)),
        ("Llama-3-70B", ["o_proj", "*_proj"], 80 * (2 * 16384 + 2 * 9216 + 3 * 36864)),
        ("Nemotron-H-8B", ["*down_proj"], 24 * (21504 + 4096)),
    ],
)
def test_adapters_have_a_rank_of_values_for_every_input_and_output(
    name: str, targets: list[str], sides: int
) -> None:
    assert shape_of(name).adapter_parameters(16, targets) == 16 * sides


def test_targets_that_name_nothing_are_told() -> None:
    with pytest.raises(UserError, match=r"lora.targets query names no linear layer .* q_proj, k_proj"):
        shape_of("Llama-3-8B").adapter_parameters(8, ["query"])


def test_what_a_shape_says_of_itself() -> None:
    llama, mixtral, deepseek = shape_of("Llama-3-8B"), shape_of("Mixtral-8x7B"), shape_of("DeepSeek-V3")
    assert (llama.name, llama.family, llama.vocab, llama.width, llama.depth) == (
        "Llama-3-8B",
        "llama",
        128256,
        4096,
        32,
    )
    assert (llama.heads, llama.kv_heads, llama.head_size, llama.context) == (32, 8, 128, 8192)
    assert (llama.feed_forward, mixtral.feed_forward, deepseek.feed_forward) == (14336, 14336, 18432)
    assert (deepseek.heads, deepseek.kv_heads, deepseek.head_size) == (128, 128, 192)
    tied = shape_of("Llama-3.2-1B")
    assert (tied.tied, tied.embedding_parameters, tied.head_parameters) == (
        True,
        128256 * 2048,
        128256 * 2048,
    )
    assert tied.parameters == tied.layer_parameters + tied.embedding_parameters + tied.width


@pytest.mark.parametrize("name", [*PUBLISHED, *ODD])
def test_derivations_end_in_the_numbers_they_explain(name: str) -> None:
    shape = from_config({**PUBLISHED, **{key: (value, 0) for key, value in ODD.items()}}[name][0], name)
    parameters, active, cache, forward, training = shape.quantities()
    assert parameters.value == shape.parameters
    assert math.fsum(part.value for part in parameters.inputs) == shape.parameters
    assert active.value == shape.active_parameters
    idle = math.fsum(part.value for part in active.inputs[1:])
    assert active.inputs[0].value - idle == shape.active_parameters
    assert cache.value == 2 * math.fsum(part.value for part in cache.inputs)
    length = min(4096, shape.context or 4096)
    assert math.fsum(part.value for part in forward.inputs) == pytest.approx(
        shape.forward_flops(length), rel=1e-12
    )
    assert training.value == shape.training_flops(length)
    assert all(list(found.derivation()) for found in (parameters, active, cache, forward, training))
    assert shape.quantities(64)[3].value == shape.forward_flops(64)


# ------------------------------------------------------------------------------------------- reading


def test_a_file_and_its_folder_are_read_alike(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert read(tmp_path) == read(str(tmp_path / "config.json"))
    assert read(tmp_path).name == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[1]", "expected one JSON object"),
        ("{}", "model_type is missing; supported families: llama, mistral"),
        (
            '{"model_type": "gpt2"}',
            "model_type = 'gpt2' is not supported; supported families: llama, mistral",
        ),
        ('{"model_type": ["llama"]}', "is not supported"),
        (json.dumps({**LLAMA, "hidden_size": math.nan}), "hidden_size = nan is not a whole number"),
        ("\xff", "is not JSON"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_of_no_use_is_told(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "config.json"
    if content is not None:
        file.write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as told:
        read(file)
    assert str(file) in str(told.value)
    assert words in str(told.value)
    assert "\n" not in str(told.value)
    assert told.value.exit_status == 2


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("Llama-3-8B", {"num_hidden_layers": 0}, "num_hidden_layers = 0 is out of range"),
    ("Llama-3-8B", {"num_hidden_layers": 10**7}, "num_hidden_layers = 10000000 is out of range"),
    ("Llama-3-8B", {"hidden_size": -4096}, "hidden_size = -4096 is out of range"),
    ("Llama-3-8B", {"hidden_size": 4096.0}, "hidden_size = 4096.0 is not a whole number"),
    ("Llama-3-8B", {"hidden_size": True}, "hidden_size = True is not a whole number"),
    ("Llama-3-8B", {"vocab_size": "128256"}, "vocab_size = '128256' is not a whole number"),
    ("Llama-3-8B", {"vocab_size": math.nan}, "vocab_size = nan is not a whole number"),
    ("Llama-3-8B", {"intermediate_size": math.inf}, "intermediate_size = inf is not a whole number"),
    ("Llama-3-8B", {"intermediate_size": None}, "intermediate_size is missing"),
    (
        "Llama-3-8B",
        {"num_attention_heads": 33},
        "num_key_value_heads = 8 does not divide num_attention_heads = 33",
    ),
    (
        "Llama-3-8B",
        {"num_attention_heads": 24},
        "num_attention_heads = 24 does not divide hidden_size = 4096",
    ),
    ("Llama-3-8B", {"num_key_value_heads": 5}, "num_key_value_heads = 5 does not divide"),
    ("Llama-3-8B", {"tie_word_embeddings": "yes"}, "tie_word_embeddings = 'yes' is neither true nor false"),
    ("Llama-3-8B", {"max_position_embeddings": 0}, "max_position_embeddings = 0 is out of range"),
    ("Mistral-7B-v0.1", {"sliding_window": -1}, "sliding_window = -1 is out of range"),
    ("gemma-2-2b", {"sliding_window": None}, "sliding_window is missing"),
    (
        "gemma-2-2b",
        {"layer_types": ["full_attention"]},
        "layer_types has 1 entries for num_hidden_layers = 26",
    ),
    ("gemma-2-2b", {"layer_types": ["chunked_attention"] * 26}, "layer_types has 'chunked_attention'"),
    ("gemma-2-2b", {"layer_types": "full_attention"}, "is not a list of names"),
    ("gemma-3-1b", {"model_type": "gemma3"}, "text_config is missing"),
    ("gemma-3-1b", {"model_type": "gemma3", "text_config": {"hidden_size": 0}}, "text_config."),
    ("Mixtral-8x7B", {"num_experts_per_tok": 9}, "num_experts_per_tok = 9 is more than the 8 experts"),
    ("Mixtral-8x7B", {"num_local_experts": None}, "num_local_experts is missing"),
    ("Qwen3-30B-A3B", {"mlp_only_layers": [-1]}, "is not a list of whole numbers"),
    ("DeepSeek-V3", {"kv_lora_rank": 0}, "kv_lora_rank = 0 is out of range"),
    ("DeepSeek-V3", {"first_k_dense_replace": -3}, "first_k_dense_replace = -3 is out of range"),
    ("Mamba-Codestral-7B", {"num_heads": 120}, "is not hidden_size x expand = 8192"),
    ("Mamba-Codestral-7B", {"n_groups": 7}, "n_groups = 7 does not divide the 128 heads"),
    ("Nemotron-H-8B", {"hybrid_override_pattern": "MX*"}, "hybrid_override_pattern has 'X'"),
    ("Nemotron-H-8B", {"hybrid_override_pattern": None}, "layers_block_type is missing"),
    (
        "Nemotron-H-8B",
        {"num_hidden_layers": 51},
        "num_hidden_layers = 51, and hybrid_override_pattern has 52",
    ),
    ("Bamba-9B", {"attn_layer_indices": [32]}, "attn_layer_indices has 32"),
    ("Bamba-9B", {"mamba_n_heads": 100}, "mamba_n_heads = 100 does not divide"),
    ("Bamba-9B", {"mamba_d_head": 65}, "mamba_d_head x mamba_n_heads is not"),
]


@pytest.mark.parametrize(("name", "changes", "words"), BROKEN)
def test_a_field_that_makes_no_sense_is_told_with_its_file(name: str, changes: Config, words: str) -> None:
    with pytest.raises(UserError) as told:
        from_config({**PUBLISHED[name][0], **changes}, "models/mine/config.json")
    assert str(told.value).startswith("models/mine/config.json: ")
    assert words in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_file_without_its_sizes_is_refused_and_not_filled_in(name: str) -> None:
    config = PUBLISHED[name][0]
    for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size"):
        rest = {field: value for field, value in config.items() if field != key}
        needless = key not in config or config["model_type"] in ("gemma3_text", "nemotron_h", "qwen3_moe")
        if needless and key != "hidden_size":
            continue
        with pytest.raises(UserError, match=f"{key} is missing"):
            from_config(rest, name)


# ------------------------------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("llama-1b", "Llama-3.2-1B"),
        ("llama-8b", "Llama-3-8B"),
        ("llama-70b", "Llama-3-70B"),
        ("llama-405b", "Llama-3.1-405B"),
    ],
)
def test_the_recipes_models_are_the_published_ones(
    recipe: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", "/nonexistent")
    model = load(recipe, ROOT).settings.model
    shape = of_recipe(model)
    assert shape.parameters == PUBLISHED[name][1]
    assert shape.context == model.context


def test_a_base_on_this_machine_is_what_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["Mixtral-8x7B"][0]))
    assert of_recipe(Model(base=str(tmp_path))).parameters == 46_702_792_704
    cached = tmp_path / "models--mistralai--Mixtral" / "snapshots" / "main"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text(json.dumps(LLAMA))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert of_recipe(Model(base="mistralai/Mixtral")).parameters == 8_030_261_248
    assert of_recipe(Model(base="mistralai/NotFetched", heads=8)).heads == 8


def test_a_recipe_whose_numbers_do_not_fit_together_is_told() -> None:
    with pytest.raises(UserError, match=r"the recipe's model section: .*does not divide"):
        of_recipe(Model(hidden_size=128, heads=3, kv_heads=3))


# ------------------------------------------------------------------------------------- any configuration

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 70),
    st.sampled_from(
        [10**12, 0.5, math.nan, math.inf, -1.0, "7", "", [], [0, 3], ["full_attention"], {}, {"a": 1}]
    ),
)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from(sorted(ODD)), st.data())
def test_any_field_of_any_value_gives_a_shape_or_one_line(name: str, data: st.DataObject) -> None:
    config = dict(ODD[name])
    keys = data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3, unique=True))
    for key in keys:
        config[key] = data.draw(VALUES)
    try:
        shape = from_config(config, "config.json")
    except UserError as error:
        told = str(error)
    else:
        hold_together(shape)
        return
    assert told.startswith("config.json: ")
    assert "\n" not in told


@st.composite
def small(draw: st.DrawFn) -> Config:
    """A valid small configuration of any family."""
    config = dict(ODD[draw(st.sampled_from(sorted(ODD)))])
    size = st.integers(1, 40)
    kv = draw(st.integers(1, 4))
    head = draw(st.integers(1, 20))
    heads = kv * draw(st.integers(1, 4))
    config |= {"vocab_size": draw(size), "intermediate_size": draw(size)}
    if config["model_type"] not in ("mamba2", "bamba"):
        config |= {
            "hidden_size": draw(size),
            "num_attention_heads": heads,
            "num_key_value_heads": kv,
            "head_dim": head,
        }
    for key in ("attention_bias", "mlp_bias", "tie_word_embeddings", "use_bias"):
        config[key] = draw(st.booleans())
    if "num_experts_per_tok" in config:
        config["num_experts_per_tok"] = draw(st.integers(1, 5))
    return config


@settings(deadline=None, max_examples=300)
@given(small())
def test_the_numbers_of_any_small_model_hold_together(config: Config) -> None:
    shape = from_config(config, "small")
    assert (shape.vocab, shape.family in SUPPORTED) == (config["vocab_size"], True)
    hold_together(shape)


def hold_together(shape: Shape) -> None:
    """What is true of every shape."""
    parts = sum(part.parameters for layer in shape.layers for part in layer.parts)
    norms = sum(layer.norms for layer in shape.layers) + 1
    embeddings = shape.vocab * shape.width * (1 if shape.tied else 2)
    assert shape.parameters == parts + norms * shape.width + embeddings
    assert 0 < shape.active_parameters <= shape.parameters
    assert (
        shape.parameters - shape.active_parameters == shape.layer_parameters - shape.active_layer_parameters
    )
    assert shape.active_matmul_weights - shape.head_parameters <= shape.active_layer_parameters
    previous = 0.0
    for tokens in (1, 7, 16, 17, 1000):
        kept = shape.cache_bytes(tokens)
        assert kept >= previous
        assert kept == pytest.approx(shape.cache_bytes(tokens, 1.0) * 2 - state_bytes(shape))
        assert shape.attention_flops(tokens, causal=True) == pytest.approx(
            sum(part.attention_flops(tokens, True) for layer in shape.layers for part in layer.parts)
        )
        assert shape.attention_flops(tokens, True) <= shape.attention_flops(tokens, False)
        assert shape.forward_flops(tokens) <= shape.forward_flops(tokens, causal=False) or shape.scan_flops(
            tokens
        )
        assert shape.forward_flops(tokens) >= 2 * shape.active_matmul_weights
        previous = kept
    assert math.fsum(found.value for found in shape.quantities()[0].inputs) == shape.parameters
    assert dataclasses.replace(shape, name="again").parameters == shape.parameters


def state_bytes(shape: Shape) -> float:
    """Bytes of the states that stay in fp32 however the rest is kept."""
    spaces = [layer.mixer for layer in shape.layers if isinstance(layer.mixer, StateSpace)]
    return sum(4.0 * space.inner * space.state for space in spaces)
