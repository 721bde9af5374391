"""An export without its model: what is written from settings alone, what is said of the rest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from pipeline import recipe, schema
from pipeline.cli import main
from pipeline.launch import submit
from pipeline.launch.orders import write_jobs
from pipeline.plan.shapes import of_recipe
from pipeline.serving import rehearsal, repository
from pipeline.serving.targets import PRECISIONS, TARGETS
from pipeline.toolchains import ROOT

# GPUs that a layer is cut over, and the weights: docs/published-settings.md, "Serving".
PUBLISHED = {
    "llama-1b": (1, "bf16"),
    "llama-8b": (1, "fp8"),
    "llama-70b": (2, "fp8"),
    "llama-405b": (8, "fp8"),
}


@pytest.fixture(autouse=True)
def no_serving_toolchain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal.Toolchain, "ready", lambda _: False)


def load(name: str, settings: str = "") -> schema.Recipe:
    return recipe.load(name, ROOT, settings).settings


@pytest.mark.parametrize(("name", "tensor", "weights"), [(name, *what) for name, what in PUBLISHED.items()])
def test_a_large_recipe_serves_as_published_and_its_repository_is_sound(
    name: str, tensor: int, weights: str, tmp_path: Path
) -> None:
    settings = load(name)
    done = rehearsal.rehearse(settings, tmp_path / "repository")
    assert done.faults == []
    found = {path for path in (tmp_path / "repository").rglob("*") if path.is_file()}
    assert {str(path.relative_to(done.folder)) for path in found} == set(done.written)
    arguments = yaml.safe_load((done.folder / "assistant/1/model.yaml").read_text())
    assert (arguments["tensor_parallel_size"], settings.export.weights) == (tensor, weights)
    assert arguments["cuda_graph_config"] == {"enable_padding": True, "max_batch_size": 1024}
    assert arguments["max_seq_len"] == 2048
    # A model of this size fits the 80 GB of the GPUs that it names, and leaves room for the cache.
    assert rehearsal.weight_bytes(of_recipe(settings.model), weights) / tensor < 0.75 * 80e9


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_every_target_is_rehearsed_and_says_what_it_lacks(target: str, tmp_path: Path) -> None:
    adapters = "" if target == "trtllm-engine" else f"export.adapters.polite={tmp_path}"
    done = rehearsal.rehearse(load("llama-mini", f"export.target={target} {adapters}"), tmp_path / "r")
    assert done.faults == []
    assert ("polite/config.pbtxt" in done.written) == (target == "cpu-openvino")
    paths = [each.path for each in done.added]
    assert paths[0] == "bundle/"
    if target in ("trtllm", "vllm"):
        assert paths[2].endswith("/1/adapters/polite/")
    said = rehearsal.words_of(done, load("llama-mini", f"export.target={target}"))
    assert "not executed: config.pbtxt was not parsed" in said
    assert ("not executed: no GPU" in said) == TARGETS[target].gpu


def test_a_large_recipe_can_be_served_by_another_target(tmp_path: Path) -> None:
    for settings in ("export.target=vllm", "export.target=trtllm-engine export.kv_cache=auto"):
        assert rehearsal.rehearse(load("llama-70b", settings), tmp_path / "r").faults == []


def test_what_an_engine_refuses_is_a_fault(tmp_path: Path) -> None:
    settings = load("llama-8b")
    settings.export.serving.arguments = {"max_batch_sise": 5, "cuda_graph_config": None}
    [fault] = rehearsal.rehearse(settings, tmp_path / "r").faults
    assert "export.serving.arguments: max_batch_sise" in fault


def test_sizes_are_estimated_for_every_precision() -> None:
    assert set(rehearsal.BYTES) == set(PRECISIONS)
    model = of_recipe(load("llama-8b").model)
    assert rehearsal.weight_bytes(model, "fp32") == 4 * model.parameters
    # 6.98 of 8.03 billion parameters are in the layers' matrices.
    assert rehearsal.weight_bytes(model, "fp8") == pytest.approx(6.98e9 + 2 * 1.05e9, rel=1e-3)


def test_what_is_served_is_what_was_trained_on_or_what_the_recipe_says(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192}')
    own = f"model.base={tmp_path} model.context=256 export.serving.max_length"
    trained = load("llama-8b", f"{own}=null")
    assert rehearsal.context_of(trained) == 256  # it was 8,192, and what a prompt of 5,000 got was noise
    assert rehearsal.context_of(load("llama-8b", f"{own}=4096")) == 4096
    assert rehearsal.context_of(load("llama-8b", f"{own}=100000")) == 8192
    as_it_is = replace(trained, stages=["curate", "evaluate", "export"])
    assert rehearsal.context_of(as_it_is) == 8192
    assert 'key: "context" value { string_value: "256" }' in _config(trained)
    assert rehearsal.context_of(replace(trained, model=load("llama-8b").model)) == 2048


def _config(settings: schema.Recipe) -> str:
    files = repository.files(settings.export, "0" * 64, rehearsal.context_of(settings))
    return files[f"{settings.export.model_name}/config.pbtxt"]


def test_the_dry_run_of_an_export_leaves_the_repository_and_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "one"}\n')
    monkeypatch.setattr(submit.Toolchain, "require", lambda _: None)
    monkeypatch.setattr(submit, "hand_over", lambda _, folder: write_jobs(folder, []))
    runs = tmp_path / "runs"
    source = f"curate.sources=[{{kind: jsonl, path: {documents}}}]"
    call = ["llama-8b", "--site", "slurm", "--dry-run", "--runs", str(runs), "--set", f'"{source}"']
    assert main(["export", *call]) == 0
    said = capsys.readouterr().err
    assert "repository for trtllm (fp8)" in said
    assert "repository/assistant/1/checkpoint/  fp8 checkpoint and tokenizer, about 9.08 GB" in said
    assert "not executed: no GPU and no container" in said
    assert (runs / "llama-8b/dry-run/repository/assistant/1/model.yaml").is_file()
    assert not (runs / "llama-8b/launch").exists()
    assert main(["evaluate", *call]) == 0
    assert "repository for" not in capsys.readouterr().err


@pytest.mark.parametrize("site", ["slurm", "kubernetes"])
def test_the_dry_run_of_a_deployment_leaves_what_a_cluster_reads(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    assert main(["deploy", "llama-8b", "--site", site, "--dry-run", "--runs", str(runs)]) == 0
    printed = capsys.readouterr()
    folder = runs / "llama-8b" / "dry-run"
    values = yaml.safe_load((folder / "serving" / "values.yaml").read_text())
    assert values["model"]["identity"] == rehearsal.UNKNOWN
    assert values["gpus"] == {"perPod": 1, "resource": "nvidia.com/gpu", "kind": "H100"}
    assert values["image"]["digest"] == ""  # none is made up
    assert str(folder / "serving" / "serve.sbatch") in printed.out
    assert (folder / "repository/assistant/1/model.yaml").is_file()
    assert "not executed: no GPU" in printed.err
    if site == "slurm":
        assert "checked: serve.sbatch" in printed.err
    else:
        assert "the chart was not rendered: its toolchain is not installed" in printed.err


def test_a_deployment_that_one_machine_cannot_hold_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["deploy", "llama-8b", "--site", "slurm", "--dry-run", "--runs", str(tmp_path)]
    assert main([*words, "--set", "export.serving.tensor=8 export.serving.pipeline=2"]) == 0
    assert "nodes=2" in (tmp_path / "llama-8b/dry-run/serving/serve.sbatch").read_text()
    capsys.readouterr()
    assert (
        main([*words, "--set", "export.target=vllm export.serving.tensor=8 export.serving.pipeline=2"]) == 2
    )
    assert "trtllm" in capsys.readouterr().err
