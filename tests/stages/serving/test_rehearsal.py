"""A rehearsed export beside a real one, and its configurations read by Triton's own schema."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import schema
from pipeline.serving import rehearsal
from pipeline.serving.targets import TARGETS
from tests.miniature import IDENTITY


def recipe(model: Path | None = None, **export: object) -> schema.Recipe:
    settings = schema.Recipe()
    settings.model.base = None if model is None else str(model)
    settings.export = schema.Export(**export)
    settings.export.settle(gpus=0)
    return settings


def test_a_rehearsal_writes_the_very_text_files_that_the_export_does(
    exported: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    settings = recipe(inputs["pretrain"] / "model")
    done = rehearsal.rehearse(settings, tmp_path / "r", IDENTITY)
    assert done.faults == []
    assert "config.pbtxt by Triton's own schema" in done.checked
    real = exported / "repository"
    added = [place.path.removeprefix("repository/") for place in done.added if "repository" in place.path]
    assert added == ["assistant/1/openvino/"]
    files = {str(file.relative_to(real)): file for file in real.rglob("*") if file.is_file()}
    assert set(done.written) == {path for path in files if not path.startswith(added[0])}
    for path in done.written:
        assert (done.folder / path).read_bytes() == files[path].read_bytes()


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_triton_reads_every_targets_configurations(target: str, tmp_path: Path) -> None:
    done = rehearsal.rehearse(recipe(target=target, serving=schema.Serving(tensor=2)), tmp_path / "r")
    assert done.faults == []
    config = done.folder / "assistant" / "config.pbtxt"
    text = config.read_text()
    for wrong, told in (
        (text.replace("TYPE_STRING", "TYPE_TEXT", 1), "TYPE_TEXT"),
        (text.replace("max_batch_size:", "max_batch_sise:"), "max_batch_sise"),
        (text.replace('"assistant"', '"other"'), "names the model 'other'"),
        (text.replace('backend: "python"', ""), "names no backend"),
    ):
        config.write_text(wrong)
        [fault] = rehearsal.config_faults(done.folder)
        assert told in fault


@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_sizes_are_those_of_a_real_export(
    weights: str, exported: Path, inputs: dict[str, Path], tmp_path: Path
) -> None:
    from pipeline.plan.shapes import of_recipe
    from pipeline.stages.export import openvino
    from pipeline.stages.models import load_tokenizer
    from pipeline.stages.step import Step

    folder = exported / "repository/assistant/1/openvino"
    if weights != "fp32":
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(exported / "bundle")
        step = Step(
            "export", "pipeline.stages.export", "r", IDENTITY, {}, {"data": inputs["data"]}, None, tmp_path, 1
        )
        openvino.convert(model, load_tokenizer(step), tmp_path / "ir", weights)
        folder = tmp_path / "ir"
    estimated = rehearsal.weight_bytes(of_recipe(recipe(inputs["pretrain"] / "model").model), weights)
    # Scales and constants of a model this small weigh something.
    assert (folder / "openvino_model.bin").stat().st_size == pytest.approx(estimated, rel=0.15)
