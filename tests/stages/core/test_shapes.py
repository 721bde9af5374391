"""Shapes, held to models that transformers builds: parameters, FLOP and adapters exactly, caches by their bytes.

Full-size models are built on the meta device, which has sizes and no values; FLOP are counted there by PyTorch's
``FlopCounterMode`` on eager attention, which computes the whole square of scores, as ``causal=False`` says.  Two things
that it counts are no work of the model and taken away: the table of rotary angles, a product of positions and
frequencies that is made once for all layers, and the outputs of a causal convolution beyond the sequence, which
are cut off.  The rest agrees to the last FLOP, experts and scans included.  What the counter cannot see, additions and elementwise products (norms,
softmax, the decay of states), is in neither count; nor can it see what a causal kernel leaves out.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import sliding_window_causal_mask_function

from pipeline.plan.shapes import SUPPORTED, Shape, from_config
from pipeline.plan.shapes.dense import Attention, positions_seen
from pipeline.plan.shapes.statespace import StateSpace
from tests.model_configs import ODD, PUBLISHED, Config

# Published models whose FLOP are counted like those of a smaller one of their family.
SAME = (
    "Llama-3-70B",
    "Llama-2-70B",
    "Llama-3.2-1B",
    "Qwen2.5-0.5B",
    "Qwen2.5-32B",
    "Qwen3-0.6B",
    "gemma-2b",
    "gemma-2-9b",
)
ALL = {name: config for name, (config, _) in PUBLISHED.items()} | ODD


def build(config: Config, device: str = "meta", **more: Any) -> PreTrainedModel:
    """The model of a configuration, with attention and experts that can be counted anywhere."""
    own = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **own),
            attn_implementation="eager",
            experts_implementation="batched_mm",
            **more,
        ).eval()


def counted(model: PreTrainedModel, shape: Shape, length: int) -> int:
    """FLOP of the model in a forward pass over one sequence, without what the counter sees beside it."""
    square = torch.zeros(1, 1, length, length, device="meta")
    mask: Any = square
    if shape.family in ("nemotron_h", "bamba"):
        mask = {"full_attention": square, "linear_attention": None}
    elif shape.family == "mamba2":
        mask = None
    tokens = torch.zeros(1, length, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=tokens, attention_mask=mask, use_cache=False)
    modules = counter.get_flop_counts().items()
    tables = sum(sum(found.values()) for name, found in modules if name.endswith("rotary_emb"))
    spaces = [(count, part) for count, part in shape.parts if isinstance(part, StateSpace)]
    cut = sum(count * (part.kernel - 1) * 2 * part.kernel * part.convolved for count, part in spaces)
    return counter.get_total_flops() - tables - cut


@pytest.mark.parametrize("name", ALL)
def test_parameters_are_those_of_the_model_on_the_meta_device(name: str) -> None:
    model = build(ALL[name])
    shape = from_config(ALL[name], name)
    assert shape.parameters == sum(value.numel() for value in model.parameters())
    assert shape.embedding_parameters == model.get_input_embeddings().weight.numel()
    assert shape.head_parameters == model.get_output_embeddings().weight.numel()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert shape.tied == tied
    layers = [value.numel() for key, value in model.named_parameters() if ".layers." in key]
    assert shape.layer_parameters == sum(layers)


@pytest.mark.parametrize("name", [name for name in ALL if name not in SAME])
def test_forward_flops_are_those_that_pytorch_counts(name: str) -> None:
    config = ALL[name]
    model, shape = build(config), from_config(config, name)
    # Inside every window; of the published state spaces' chunks no whole number.
    length = 16 if name in ODD else 300
    assert round(length * shape.forward_flops(length, causal=False)) == counted(model, shape, length)


@pytest.mark.parametrize(
    "name", [name for name in ODD if name.split(",")[0] in ("mamba2", "nemotron_h", "bamba")]
)
@pytest.mark.parametrize("length", [1, 8, 13, 64])
def test_scans_of_any_length_are_those_that_pytorch_counts(name: str, length: int) -> None:
    config = ODD[name]
    model, shape = build(config), from_config(config, name)
    assert round(length * shape.forward_flops(length, causal=False)) == counted(model, shape, length)


def test_eager_attention_counts_the_whole_square_where_a_window_leaves_most_of_it_out() -> None:
    config = ODD["mistral, window"]
    model, shape = build(config), from_config(config, "window")
    whole = from_config({**config, "sliding_window": None}, "none")
    assert round(64 * whole.forward_flops(64, causal=False)) == counted(model, shape, 64)
    assert shape.attention_flops(64, causal=False) == whole.attention_flops(64, causal=False) * 16 / 64


@pytest.mark.parametrize(("length", "window"), [(64, 16), (64, 64), (9, 4), (7, 1)])
def test_a_window_reaches_as_far_as_transformers_mask_lets_it(length: int, window: int) -> None:
    at = torch.arange(length)
    allowed = sliding_window_causal_mask_function(window)(0, 0, at[:, None], at[None, :])
    # Half of the positions rather than half and one, as papers count: the diagonal is counted by half.
    assert length * positions_seen(length, window, causal=True) == int(allowed.sum()) - window / 2


@pytest.mark.parametrize("name", ALL)
def test_sides_of_adapters_are_those_of_the_linear_modules(name: str) -> None:
    found: Counter[tuple[str, int, int]] = Counter()
    for path, module in build(ALL[name]).named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in path:
            found[path.rsplit(".", 1)[-1], module.in_features, module.out_features] += 1
    assert sorted(from_config(ALL[name], name).linear_sides()) == sorted(
        (*key, n) for key, n in found.items()
    )


@pytest.mark.parametrize("name", ODD)
@pytest.mark.parametrize("targets", [["*_proj"], ["q_proj", "*v_proj"], ["*.down_proj", "out_proj"]])
def test_adapters_are_those_that_automodel_matches(name: str, targets: list[str]) -> None:
    from nemo_automodel.components._peft.module_matcher import ModuleMatcher

    matcher, model, shape = (
        ModuleMatcher(target_modules=targets),
        build(ODD[name]),
        from_config(ODD[name], name),
    )
    matched = 0
    for path, module in model.named_modules():
        prefix, _, leaf = path.rpartition(".")
        if isinstance(module, torch.nn.Linear) and matcher.match(module, leaf, prefix):
            matched += 5 * (module.in_features + module.out_features)
    if matched:
        assert shape.adapter_parameters(5, targets) == matched
    else:
        with pytest.raises(Exception, match="names no linear layer"):
            shape.adapter_parameters(5, targets)


# transformers runs a Bamba without attention only without a cache.
@pytest.mark.parametrize("name", [name for name in ODD if name != "bamba, no attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_caches_have_the_bytes_of_a_real_one(name: str, dtype: torch.dtype) -> None:
    config, size = ODD[name], dtype.itemsize
    model, shape = build(config, "cpu", dtype=dtype), from_config(config, name)
    windows = [
        (count, part)
        for count, part in shape.parts
        if isinstance(part, Attention) and part.window is not None
    ]
    for tokens in (5, 15, 40):
        with torch.no_grad():
            output = model(input_ids=torch.arange(tokens)[None], use_cache=True)
        cache = output.cache_params if shape.family == "mamba2" else output.past_key_values
        # Between steps transformers keeps one token less than a window, whose place the next one takes.
        missing = sum(n * part.values_per_token for n, part in windows if tokens >= (part.window or math.inf))
        assert bytes_of(cache) == shape.cache_bytes(tokens, size) - missing * size
        if not windows and shape.heads:
            state = shape.cache_bytes(1, size) - shape.cache_bytes_per_token(size)
            assert bytes_of(cache) == state + tokens * shape.cache_bytes_per_token(size)


def bytes_of(cache: Any) -> int:
    """All tensors that a cache keeps of a sequence."""
    tensors: list[torch.Tensor] = []
    for layer in cache.layers:
        tensors += [
            getattr(layer, key) for key in ("keys", "values") if getattr(layer, key, None) is not None
        ]
        for key in ("conv_states", "recurrent_states"):
            tensors += [state for state in getattr(layer, key, {}).values() if state is not None]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_a_gemma_that_sees_has_the_language_model_of_its_text_part() -> None:
    text = {**ODD["gemma3_text, every other layer"]}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={"num_hidden_layers": 1})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    own = [
        value.numel()
        for key, value in model.named_parameters()
        if "language_model" in key or "lm_head" in key
    ]
    assert from_config(config.to_dict(), "gemma3").parameters == sum(own)
    assert from_config({"model_type": "gemma3", "text_config": text}, "gemma3").parameters == sum(own)


@pytest.mark.parametrize("name", ALL)
def test_what_transformers_writes_is_read_as_the_same_model(name: str) -> None:
    config = ALL[name]
    own = {key: value for key, value in config.items() if key != "model_type"}
    written = AutoConfig.for_model(config["model_type"], **own)
    first = from_config(config, name)
    for again in (written.to_dict(), written.to_diff_dict()):
        second = from_config({"model_type": config["model_type"], **again}, name)
        assert (second.parameters, second.layers, second.tied) == (first.parameters, first.layers, first.tied)


def test_every_supported_family_is_tested() -> None:
    families = {config["model_type"] for config in ALL.values()} | {"gemma3"}
    assert families == set(SUPPORTED)
    assert {config["model_type"] for config in ODD.values()} | {"gemma3"} == set(SUPPORTED)
