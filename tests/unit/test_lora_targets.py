"""Targets of adapters that name nothing, or too much, are refused before anything starts."""

from __future__ import annotations

import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.lora_targets import faults, llama_layers, names
from pipeline.toolchains import ROOT


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ([], "is empty, so that nothing would be trained"),
        (["query"], "'query' names no linear layer of a Llama of 4 layers; it has q_proj, k_proj"),
        (["q_proj", "v_porj"], "'v_porj' names no linear layer"),
        (["self_attn.q_proj"], "a pattern is of the whole path"),
        (["*.layers.4.*"], "names no linear layer of a Llama of 4 layers"),
        (["lm_head"], "'lm_head' names lm_head, whose weights are the input embedding's"),
        (["*"], "'*' names lm_head"),
        (["embed_tokens"], "names no linear layer"),
        (["q_proj|k_proj"], "names no linear layer"),
    ],
)
def test_what_names_nothing_or_a_tied_layer_is_refused(targets: list[str], words: str) -> None:
    found = list(faults(targets, depth=4, tied=True))
    assert len(found) == 1
    assert words in found[0]


@pytest.mark.parametrize(
    "targets", [["*_proj"], ["q_proj", "v_proj"], ["*.layers.3.*"], ["*.mlp.*", "*.q_proj"]]
)
def test_what_names_layers_is_taken(targets: list[str]) -> None:
    assert list(faults(targets, depth=4, tied=True)) == []


def test_an_output_layer_of_its_own_can_be_adapted_and_a_reward_model_has_none() -> None:
    assert list(faults(["lm_head"], depth=1, tied=False)) == []
    assert len(list(faults(["lm_head"], depth=1, tied=False, head=False))) == 1
    assert list(faults(["*"], depth=1, tied=True, head=False)) == []


def test_a_layers_number_is_not_the_beginning_of_another() -> None:
    found = [path for path in llama_layers(12) if names("*.layers.1.*", path)]
    assert found == [path for path in llama_layers(12) if ".layers.1." in path]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("train.peft=lora train.lora.targets=[]", "SET: train.lora.targets: is empty"),
        ("train.peft=lora train.lora.targets=[qkv]", "SET: train.lora.targets: 'qkv' names no linear layer"),
        ("align.peft=dora \"align.lora.targets=['*']\"", "SET: align.lora.targets: '*' names lm_head"),
        ("stages=[]", "SET: stages: is empty"),
    ],
)
def test_it_is_told_with_the_recipe(settings: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        recipe.load("llama-tiny", ROOT, settings)
    assert said in str(refused.value)
