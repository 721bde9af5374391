"""AutoModel's loader takes a configuration's texts as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from nemo_automodel.components.config.loader import ConfigNode

from pipeline import schema
from pipeline.engines.automodel.config import literal, recipe_config

NAMES = ("$HOME", "${HOME}", "${oc.env:SECRET}", "${SECRET,x}", "a$SECRET.b", "it's ${not set}", "plain")


@pytest.mark.parametrize("name", NAMES)
def test_no_text_is_read_as_a_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called "$HOME" is that folder, and no setting brings a secret into checkpoints and logs."""
    monkeypatch.setenv("SECRET", "s3cret")
    folder = Path("/runs") / name
    config = recipe_config(
        schema.Train(precision="bf16"), model=folder, tokenizer=folder, train=folder / "train", validation=folder / "validation",
        checkpoints=folder, group=8,
    )  # fmt: skip
    node = ConfigNode(literal(config))
    assert str(node.checkpoint.checkpoint_dir) == str(folder)
    assert str(folder) in str(node.to_yaml_dict(use_orig_values=True))
    assert "s3cret" not in str(node.to_dict())
    made = ConfigNode(literal({"_target_": "torch.nn.Identity", "path": str(folder), "all": [str(folder)]}))
    assert "s3cret" not in str(made.to_dict())


def test_automodel_still_reads_variables() -> None:
    """Once it does not, ``literal`` is not needed any more."""
    with pytest.raises(KeyError, match="is not set"):
        ConfigNode({"path": "/runs/${no such variable}"})
