"""Settings of training that cannot go together are refused by name."""

from __future__ import annotations

import pytest

from pipeline import recipe
from pipeline.errors import UserError
from pipeline.toolchains import ROOT


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("train.parallel.tensor=2", "train.parallel.tensor: needs train.parallel.strategy=fsdp2"),
        ("train.parallel.sequence=true", "needs train.parallel.tensor above 1"),
        (
            "train.parallel.strategy=fsdp2 train.parallel.context=2 train.packing=true",
            "train.packing: does not go with train.parallel.context above 1",
        ),
        ("align.parallel.strategy=fsdp2 align.parallel.context=2", "preference losses need whole answers"),
        ("train.peft=qlora train.precision=fp32", "train.precision: fp32 does not go with qlora"),
        ("align.loss=orpo", "orpo holds the loss on the chosen answers already"),
        ("align.loss=dpoo", "align.loss"),
        (
            "align.loss=ipo align.label_smoothing=0.1",
            "align.label_smoothing: is a setting of dpo; align.loss is ipo",
        ),
        ("align.gamma=1", "align.gamma: is a setting of simpo"),
        ("train.engine=nemo train.answers=all train.micro_batch_size=1", "'all' is for the engine automodel"),
        ("tracking.mlflow=mlruns", "tracking.mlflow: 'mlruns' is not the address of a tracking server"),
        ("tracking.mlflow=https://me:secret@host", "tracking.mlflow: holds a name or password"),
        (
            "align.engine=aligner align.precision=bf16-weights align.micro_batch_size=1",
            "is for the engine automodel",
        ),
        ("align.engine=aligner align.loss=kto align.micro_batch_size=1", "aligner goes with 'dpo'"),
    ],
)
def test_what_cannot_go_together_is_refused(settings: str, said: str) -> None:
    with pytest.raises(UserError) as refused:
        recipe.load("llama-tiny", ROOT, settings, "local")
    assert said in str(refused.value)


def test_what_goes_together_is_taken() -> None:
    recipe.load("llama-tiny", ROOT, "align.loss=orpo align.sft_weight=0 train.peft=dora", "local")
