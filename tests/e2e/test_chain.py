"""One run of the whole chain on the miniature recipe, and what must hold after it."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Lifecycle, free_ports

from pipeline.runner.store import damage, file_table, output_digest
from pipeline.serving import processes, service
from pipeline.toolchains import Toolchain

HERE = Path(__file__).parent


def manifest(chain: Lifecycle, stage: str) -> dict:
    return json.loads((chain.latest(stage) / "manifest.json").read_text())


def served(chain: Lifecycle) -> service.Service:
    found = service.read(chain.runs / "llama-mini" / "deploy" / "server.json")
    assert found is not None
    return found


def test_every_stage_published_what_it_promised(chain: Lifecycle) -> None:
    for stage in ("curate", "pretrain", "train", "align", "evaluate", "export", "deploy"):
        folder = chain.latest(stage)
        files = file_table(folder)
        assert files == manifest(chain, stage)["files"]
        assert output_digest(files) == manifest(chain, stage)["output_digest"]
    parity = json.loads((chain.latest("export") / "parity.json").read_text())
    assert parity["prompts"] >= 50
    assert parity["equal"] + parity["excused"] == parity["prompts"]
    report = json.loads((chain.latest("evaluate") / "evaluation.json").read_text())
    assert report["order"] == ["pretrain", "train", "align"]
    assert "| document perplexity |" in (chain.latest("evaluate") / "evaluation.md").read_text()


def test_http_and_grpc_answer_with_hugging_faces_tokens(chain: Lifecycle) -> None:
    http, grpc, _ = re.findall(r"=(\d+)", chain.ports)
    question = "What does the function networkx.algorithms.dag.topological_sort do?"
    done = subprocess.run(
        [
            Toolchain("serving").python,
            HERE / "ask.py",
            chain.latest("export") / "bundle",
            http,
            grpc,
            question,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["http"] == answers["grpc"] == answers["hugging_face"] != ""
    assert answers["pieces"] > 1


def test_chat_once(chain: Lifecycle) -> None:
    assert chain("chat", "--once", "What is networkx?").strip()


def test_a_second_run_redoes_nothing_in_under_two_seconds(chain: Lifecycle) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    output = chain("run")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert output.count("up to date") == 7
    assert " starts: " not in output
    # Of a processor: 0.6 s by the clock where nothing else is at work, and as long as it takes where there is.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


def test_one_setting_of_align_reruns_align_and_what_follows(chain: Lifecycle) -> None:
    output = chain("plan", settings="align.beta=0.31")
    assert dict(line.split()[:2] for line in output.splitlines()[:7]) == {
        "curate": "done", "pretrain": "done", "train": "done",
        "align": "run", "evaluate": "run", "export": "run", "deploy": "run",
    }  # fmt: skip
    assert "align.beta: 0.1 -> 0.31, from SET" in output
    assert "3 of 7 steps are reused: curate, pretrain, train" in output
    assert "evaluate, export, deploy follow" in output


def test_trace_goes_from_the_running_server_to_the_data(chain: Lifecycle) -> None:
    port = re.findall(r"http_port=(\d+)", chain.ports)[0]
    found = json.loads(chain.record("trace", f"127.0.0.1:{port}", "--json"))
    assert found["served"][0]["identity"] == manifest(chain, "export")["identity"]
    assert [step["stage"] for step in found["steps"]] == [
        "deploy", "export", "evaluate", "align", "train", "pretrain", "curate",
    ]  # fmt: skip
    data = found["steps"][-1]["inputs"]["sources.0/networkx"]
    assert data["records"] == manifest(chain, "curate")["metrics"]["documents"]["raw"] > 1000
    assert len(data["digest"]) == 64
    for step in found["steps"]:
        assert len(step["made_by"]["code"]["source_digest"]) == 64
        assert len(step["made_by"]["toolchain"]["lock_digest"]) == 64
    assert "serves assistant" in chain.record("trace", f"127.0.0.1:{port}")


def test_the_report_is_one_page_with_curves_and_lineage(chain: Lifecycle) -> None:
    page = Path(chain("report").strip()).read_text()
    assert page.count("<polyline") >= 3
    assert "1,911 raw documents" in page or "raw documents =" in page
    assert "The gate before export was open." in page
    for stage in ("curate", "deploy"):
        assert manifest(chain, stage)["identity"] in page


def test_the_bundle_carries_its_model_card(chain: Lifecycle) -> None:
    card = (chain.latest("export") / "bundle" / "README.md").read_text()
    assert "| document perplexity |" in card
    assert manifest(chain, "align")["identity"][:12] in card
    assert str(chain.runs) not in card


def test_nothing_has_rotted_and_all_of_it_is_needed(chain: Lifecycle) -> None:
    assert "all of them as they were published" in chain("verify")
    assert "everything is needed" in chain.record("gc")
    plan = [line.split()[1] for line in chain("plan", "--strict", "--verify").splitlines()[:7]]
    assert plan == ["done"] * 7


def test_looking_writes_nothing(chain: Lifecycle) -> None:
    def seen() -> dict[Path, tuple[int, int]]:
        kept = (path for path in chain.runs.rglob("*") if "server" not in path.parts)
        return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in kept}

    before = seen()
    chain("plan", settings="align.beta=0.31")
    chain("status")
    chain("verify")
    chain.record("diff", "llama-mini", "llama-mini")
    chain.record("trace", "llama-mini")
    assert seen() == before


def test_a_flipped_bit_in_any_file_of_the_real_chain_is_found(chain: Lifecycle, tmp_path: Path) -> None:
    other = chain.copy(tmp_path, ("curate", "pretrain", "train", "align", "evaluate", "export"))
    flipped = 0
    for stage in ("curate", "pretrain", "train", "align", "evaluate", "export"):
        folder = other.latest(stage)
        for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
            content = file.read_bytes()
            place = len(content) * 7 // 11
            file.chmod(0o644)
            file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
            assert file.name in damage(folder, deep=True)[0]
            file.write_bytes(content)
            flipped += 1
        assert not damage(folder, deep=True)
    assert flipped > 40
    data = other.latest("curate") / "sft" / "train.jsonl"
    data.write_bytes(data.read_bytes().replace(b"e", b"f", 1))
    said = other("train", settings="train.seed=7", code=1)
    assert "which is not what curate published" in said
    assert "sft/train.jsonl is not what was published (its bytes changed)" in said
    assert "moved to" in other("verify", "--quarantine", code=1)


def test_plan_says_what_a_closed_gate_blocks(chain: Lifecycle) -> None:
    lines = chain("plan", settings="gate.min_style_accuracy_rise=0.99").splitlines()
    assert [line.split()[1] for line in lines[5:7]] == ["blocked", "blocked"]
    assert "the gate is closed: style preference accuracy change" in lines[5]
    assert "rests on export" in lines[6]


def test_lora_trains_aligns_and_resolves_to_one_model(chain: Lifecycle, tmp_path: Path) -> None:
    lora = "train.peft=lora align.peft=lora train.max_steps=6 align.max_steps=4"
    lifecycle = chain.copy(tmp_path, ("curate", "pretrain"))
    lifecycle("evaluate", settings=lora)
    for stage in ("train", "align"):
        assert (lifecycle.latest(stage) / "adapter" / "adapter_model.safetensors").is_file()
    report = json.loads((lifecycle.latest("evaluate") / "evaluation.json").read_text())
    losses = [report["models"][name]["answer_loss"] for name in report["order"]]
    assert len(set(losses)) == 3


@pytest.mark.parametrize("stage", ["pretrain", "align"])
def test_kill_and_rerun_gives_bit_identical_weights(chain: Lifecycle, tmp_path: Path, stage: str) -> None:
    before = {"pretrain": ("curate",), "align": ("curate", "pretrain", "train")}[stage]
    lifecycle = chain.copy(tmp_path, before)
    assert "was killed (signal 9)" in lifecycle.kill_step(stage)
    assert not (lifecycle.runs / "llama-mini" / stage / "latest").exists()
    again = lifecycle(stage)
    assert "goes on; it had come to train, " in again
    weights = "model/model.safetensors"
    assert (lifecycle.latest(stage) / weights).read_bytes() == (chain.latest(stage) / weights).read_bytes()
    assert "Loading checkpoint from" in lifecycle.log(stage).split("attempt of")[-1]


def test_a_base_model_takes_the_place_of_pretraining(chain: Lifecycle, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(chain.latest("pretrain") / "model", base)
    for file in (chain.latest("curate") / "tokenizer").iterdir():
        shutil.copy(file, base)
    lifecycle = Lifecycle(tmp_path / "runs", free_ports())
    settings = f"model.base={base} train.max_steps=4 align.max_steps=4 align.peft=lora"
    output = lifecycle("export", settings=settings)
    assert "pretrain" not in output
    report = json.loads((lifecycle.latest("evaluate") / "evaluation.json").read_text())
    assert report["order"] == ["base", "train", "align"]
    assert json.loads((lifecycle.latest("align") / "model.json").read_text())["kind"] == "adapter"


def test_interrupting_the_controller_ends_the_step_and_says_how_to_go_on(
    chain: Lifecycle, tmp_path: Path
) -> None:
    lifecycle = chain.copy(tmp_path, ("curate",))
    longer = "pretrain.max_steps=600"  # there is time to look at it
    process = lifecycle.start("pretrain", settings=longer)
    lifecycle.wait_for_checkpoint("pretrain", process)
    assert re.search(rf"pretrain is at work: process {process.pid} on .* steps", lifecycle("status"))
    assert f"is being run by process {process.pid}" in lifecycle("pretrain", settings=longer, code=1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "goes on from where it was" in output
    job = next((lifecycle.runs / "llama-mini" / "pretrain" / ".work").glob("*/job.json"))
    assert subprocess.run(["pgrep", "-f", str(job)], capture_output=True, check=False).returncode == 1
    assert "resume" in lifecycle("plan", settings=longer)


def test_a_calibration_times_real_steps_publishes_nothing_and_is_held_to_the_run(
    chain: Lifecycle, tmp_path: Path
) -> None:
    lifecycle = chain.copy(tmp_path, ("curate", "pretrain"))
    root = lifecycle.runs / "llama-mini"
    settings = "train.max_steps=90"
    output = lifecycle("plan", "--calibrate", settings=settings)
    assert "align     not measured: train has to run first" in output
    assert re.search(r"\ntrain +1 process, micro batch 8 of 16 .* fits +\S+ (s|min)\n", output)
    assert "time: measured on " in output
    assert "2 steps on" in output
    assert {path.name for path in root.iterdir()} == {"curate", "pretrain", "calibration.json"}
    lifecycle("train", settings=settings)
    found = json.loads((lifecycle.latest("train") / "manifest.json").read_text())
    planned = found["plan"]
    assert (planned["seconds_from"], planned["verdict"], planned["override_reason"]) == (
        "calibration",
        "fits",
        None,
    )
    # Whatever else the machine does in one of the two; how near it comes on a quiet one is in docs/planning.md.
    assert 1 / 8 < planned["seconds"] / found["seconds"] < 8
    # Another step is another measurement.
    other = lifecycle("plan", settings="train.max_steps=91")
    assert "nothing is known of this machine" in other


def test_two_processes_are_timed_together(chain: Lifecycle, tmp_path: Path) -> None:
    lifecycle = chain.copy(tmp_path, ("curate",))
    two = "launch.processes=2 pretrain.parallel.strategy=fsdp2"
    refused = lifecycle("plan", "--calibrate", settings=two, code=2)
    assert "is not 2 data-parallel ranks" in refused
    assert "starts" not in refused
    lifecycle(
        "plan",
        "--calibrate",
        settings=f"{two} pretrain.micro_batch_size=8 train.micro_batch_size=4 align.micro_batch_size=4",
    )
    found = json.loads((lifecycle.runs / "llama-mini" / "calibration.json").read_text())["pretrain"]
    assert (found["processes"], found["steps"], found["max_steps"]) == (2, 2, 60)
    assert 0 < found["step_s"] < 20
    # The tokens of a step are those of both processes.
    assert found["tokens"] == pytest.approx(found["run_tokens"] / found["max_steps"], rel=0.5)


def test_the_gate_stops_the_chain_and_an_override_is_recorded(chain: Lifecycle, tmp_path: Path) -> None:
    closed = "gate.min_style_accuracy_rise=0.99"
    output = chain("export", settings=closed, code=3)
    assert "the gate between evaluate and export is closed" in output
    assert "style preference accuracy change" in output
    lifecycle = chain.copy(tmp_path, ("curate", "pretrain", "train", "align", "evaluate"))
    lifecycle("export", settings=f"{closed} gate.override_reason='\"a test of the record\"'")
    verdict = json.loads((lifecycle.latest("export") / "manifest.json").read_text())["gate"]
    assert verdict["passed"] is False
    assert verdict["override_reason"] == "a test of the record"


def test_a_changed_port_moves_the_server_and_a_dead_one_is_started_again(chain: Lifecycle) -> None:
    first = served(chain)
    os.kill(first.gateway.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while served(chain).gateway == first.gateway:  # the keeper's work
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert chain("chat", "--once", "Hello?").strip()
    second = served(chain)
    assert second.keeper is not None
    os.kill(second.keeper.pid, signal.SIGKILL)
    os.kill(second.version.pid, signal.SIGKILL)
    plan = chain("plan")
    assert "is gone" in plan
    chain("deploy")
    assert served(chain).version.pid != second.version.pid
    assert chain("chat", "--once", "Hello?").strip()
    chain.ports = free_ports()
    chain("deploy")
    assert f"http_port={served(chain).gateway.http_port}" in chain.ports


def test_rollback_serves_the_export_before_and_deploy_the_newest(chain: Lifecycle) -> None:
    first = served(chain).identity
    assert "there is no export to go back to" in chain("rollback", code=2)
    longer = "export.max_new_tokens=48"
    chain("deploy", settings=longer)
    second = served(chain).identity
    assert second != first
    output = chain("rollback")
    assert f"back to export {first[:12]}" in output
    assert served(chain).identity == first
    assert chain("chat", "--once", "Hello?").strip()
    assert "the output of export changed" in chain("plan", settings=longer)
    assert "there is no export to go back to" in chain("rollback", code=2)
    chain("deploy", settings=longer)
    assert served(chain).identity == second
    chain("rollback", "--to", first[:8])
    assert served(chain).identity == first


@pytest.mark.parametrize(
    ("settings", "recipe", "words"),
    [
        ("", "llama-minni", "did you mean 'llama-mini'?"),
        ("train.lrr=1", "llama-mini", "did you mean 'lr'?"),
        (
            "'curate.sources=[{kind: jsonl, path: nowhere.jsonl}]'",
            "llama-mini",
            "no file or folder nowhere.jsonl",
        ),
        ("model.base=nowhere", "llama-mini", "there is no folder nowhere"),
        (
            "'curate.sources=[{kind: python-docs, packages: [nopackage]}]'",
            "llama-mini",
            "'nopackage' is not installed",
        ),
        ("site.min_free_gb=900000 pretrain.seed=7", "llama-mini", "too little disk"),
    ],
)
def test_bad_input_is_told_plainly_with_status_2(
    chain: Lifecycle, settings: str, recipe: str, words: str
) -> None:
    output = chain("run", settings=settings, recipe=recipe, code=2)
    assert words in output
    assert "Traceback" not in output


def test_bad_data_is_told_plainly_with_status_2(tmp_path: Path) -> None:
    lifecycle = Lifecycle(tmp_path / "runs", free_ports())
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "one good line of text, long enough to stay"}\n{broken\n')
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    for settings, words in (
        (f"'curate.sources=[{{kind: jsonl, path: {empty}}}]'", "empty.jsonl: the file is empty"),
        (f"'curate.sources=[{{kind: jsonl, path: {broken}}}]'", "broken.jsonl:2: not JSON"),
        (f"model.base={base}", "there is no tokenizer.json"),
    ):
        output = lifecycle("curate", settings=settings, code=2)
        assert words in output
        assert "Traceback" not in output


def test_stop_stops_exactly_that_server(chain: Lifecycle) -> None:
    record = served(chain)
    assert "stopped the gateway at http://" in chain("stop")
    assert not service.gateway_runs(record.gateway)
    assert not service.keeper_runs(record)
    assert record.version.pid not in {process.pid for process in processes.everything()}
    assert "no server" in chain("stop")
    chain("deploy")
    assert chain("status").count("done") == 7
