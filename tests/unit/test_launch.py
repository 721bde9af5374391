"""Sites of clusters without a cluster: their settings, what is refused, and what Slurm's words mean."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import recipe, schema
from pipeline.cli import main
from pipeline.errors import UserError
from pipeline.launch.checks import seconds, site_faults
from pipeline.launch.orders import Job, Order, StepOrder, submissions, write_jobs
from pipeline.launch.status import jobs_of, parse_job, write_seen
from pipeline.toolchains import ROOT
from tests.faults.light.__main__ import chain

ONELINE = (
    "JobId=7 JobName=light.train UserId=me(1) JobState=PENDING Reason=Dependency "
    "Dependency=afterok:6(unfulfilled),afterok:5(failed) ExitCode=0:0 Restarts=2 NodeList=(null) "
    "Command=/a folder/with spaces/run.sh WorkDir=/a Comment=two words TRES=cpu=1,node=1 Power= "
)


@pytest.mark.parametrize("site", ["slurm", "kubernetes"])
def test_the_sites_that_come_with_the_project_are_sound_and_bear_no_identity(site: str) -> None:
    loaded = recipe.load("llama-mini", ROOT, site=site)
    assert loaded.settings.site.kind == site
    local = recipe.load("llama-mini", ROOT)
    for section in ("curate", "model", "train"):
        mine, theirs = (getattr(each.settings, section) for each in (loaded, local))
        assert schema.identity_values(mine) == schema.identity_values(theirs)
    assert not any(schema.identity_values(schema.Site()).values())


def test_a_site_may_be_a_file_anywhere(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("kind: slurm\nslurm: {partition: night, stages: {curate: {partition: cpu, mem: 8G}}}\n")
    site = recipe.load("llama-mini", ROOT, site=str(mine)).settings.site
    assert schema.for_stage(site.slurm, "curate").partition == "cpu"
    assert schema.for_stage(site.slurm, "train").partition == "night"
    with pytest.raises(UserError, match="there is no site file"):
        recipe.load("llama-mini", ROOT, site=str(tmp_path / "none.yaml"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("site.slurm.time=12:00:00", "in quotes"),
        ("site.slurm.time=2-", "is no time limit"),
        ("site.slurm.time=\"'00:02:00'\"", "leaves no time for work"),
        ("site.slurm.mounts=[/data]", "site.slurm.mounts.0: '/data' is not HOST:CONTAINER"),
        ("site.slurm.mounts=['/data:/data']", "means nothing without site.slurm.container_image"),
        ("site.slurm.container_image='a;b'", "without quotes"),
        ("site.slurm.options='{dependency: 3}'", "is set by the chain itself"),
        ("site.slurm.options='{--mail-user: me}'", "long name without dashes"),
        ("site.slurm.stages='{trian: {mem: 8G}}'", "there is no stage 'trian'"),
        ("site.slurm.stages='{train: {gpu: 8}}'", "no setting 'gpu' for one stage"),
        ("site.slurm.stages='{train: {gpus_per_node: many}}'", "'many' is not what"),
        ("site.slurm.stages='{train: 8}'", "expected SETTING: VALUE"),
        ("site.secrets=['HF_TOKEN=hf_abc']", "would be written down"),
    ],
)
def test_a_wrong_setting_of_slurm_is_refused_by_name(settings: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("llama-mini", ROOT, settings, "slurm")
    assert said in str(caught.value)
    assert "hf_abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("site.kubernetes.image=null", "site.kubernetes.image: is missing"),
        ("site.kubernetes.claim=null", "PersistentVolumeClaim"),
        ("site.kubernetes.namespace=My_Team", "lower case"),
        ("site.kubernetes.memory=64GB", "'64GB' is no quantity"),
        ("site.kubernetes.stages='{train: {memory: much}}'", "stages.train.memory: 'much' is no quantity"),
        ("site.kubernetes.stages='{train: {image: x}}'", "there are cpu, memory, gpus"),
        ("site.kubernetes.node_selector=[gpu]", "'gpu' is not name=value"),
        ("site.kubernetes.mount=runs", "absolute path"),
        ("site.secrets=[HF_TOKEN]", "site.kubernetes.secret: is missing"),
    ],
)
def test_a_wrong_setting_of_kubernetes_is_refused_by_name(settings: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        recipe.load("llama-mini", ROOT, settings, "kubernetes")
    assert said in str(caught.value)


def test_a_site_of_another_kind_is_not_held_to_rules_of_clusters() -> None:
    site = schema.Site(slurm=schema.Slurm(time="never"), kubernetes=schema.Kubernetes(image=None))
    assert not list(site_faults(site))


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("00:10:00", 600), ("1-00:00", 86_400), ("2-03:04:05", 183_845), ("10:00", None), ("600", None)],
)
def test_time_limits_are_read_as_sbatch_reads_them(limit: str, expected: int | None) -> None:
    assert seconds(limit) == expected


def test_a_server_is_not_sent_to_a_cluster_and_a_dry_run_is_for_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.launch import submit

    monkeypatch.setattr(submit.Toolchain, "require", lambda _: None)
    assert main(["deploy", "llama-mini", "--site", "slurm", "--runs", str(tmp_path / "runs")]) == 2
    assert "would end with its job" in capsys.readouterr().err
    assert main(["run", "llama-mini", "--dry-run", "--runs", str(tmp_path / "runs")]) == 2
    assert "`lifecycle plan` says what would run" in capsys.readouterr().err
    assert main(["cancel", "llama-mini", "--runs", str(tmp_path / "runs")]) == 2
    assert "was never submitted" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_only_runs_the_step_and_nothing_before_it(tmp_path: Path) -> None:
    from pipeline.runner.display import Display

    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"text": "one"}\n{"text": "three words here"}\n')
    made = chain(tmp_path / "runs", documents)
    with pytest.raises(UserError, match="train rests on curate, which would have to run first"):
        made.run(Display(), "train", only=True)
    assert [each.state for each in made.run(Display(), "curate", only=True)] == ["ran"]
    assert [each.state for each in made.run(Display(), "train", only=True)] == ["done", "ran"]


def test_slurms_line_about_a_job_is_read() -> None:
    told = parse_job(ONELINE)
    assert told["JobState"] == "PENDING"
    assert told["Restarts"] == "2"
    assert told["Command"] == "/a folder/with spaces/run.sh"
    assert told["Comment"] == "two words"
    assert told["TRES"] == "cpu=1,node=1"


def submission(folder: Path) -> Path:
    """A submission of three steps to a Slurm that is not here."""
    made = folder / "launch" / "3"
    (made / "ends").mkdir(parents=True)
    site = {"name": "far", "kind": "slurm"}
    Order("light", 3, "2026-01-01T00:00:00Z", "/", {}, site, [StepOrder("curate", ["true"], [])]).write(made)
    chained = {"curate": [], "train": ["curate"], "export": ["curate", "train"]}
    logs = str(made / "log_{id}_{restart}.out")
    write_jobs(
        made, [Job(stage, str(n), "", logs, after) for n, (stage, after) in enumerate(chained.items())]
    )
    return made


@pytest.fixture
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.usefixtures("no_slurm")
def test_what_jobs_left_behind_tells_how_they_ended_when_slurm_has_forgotten(tmp_path: Path) -> None:
    made = submission(tmp_path)
    (made / "ends" / "curate.0").write_text("0 2026-01-01T00:00:00Z\n")
    for restart, status in ((0, 143), (2, 143), (10, 3)):
        (made / "ends" / f"train.{restart}").write_text(f"{status} 2026-01-01T00:00:00Z\n")
    curate, train, export = jobs_of(made)
    assert (curate.state, curate.exit_status) == ("COMPLETED", 0)
    assert (train.state, train.restarts, train.reason) == ("FAILED", 10, "exit status 3: the gate is closed")
    assert train.log == str(made / "log_1_10.out")
    assert (export.state, export.reason) == ("CANCELLED", "never started: train did not end well")
    assert json.loads((made / "seen.json").read_text())["train"]["state"] == "FAILED"


@pytest.mark.usefixtures("no_slurm")
def test_a_job_that_nobody_knows_any_more_is_not_called_running(tmp_path: Path) -> None:
    made = submission(tmp_path)
    curate, *_ = jobs_of(made)
    assert curate.state == "UNKNOWN"
    from pipeline.launch.status import JobStatus

    write_seen(made, [JobStatus("curate", "0", "RUNNING", host="node1")])
    curate, *_ = jobs_of(made)
    assert curate.state == "UNKNOWN"
    assert "last seen RUNNING" in curate.reason
    assert not curate.live


def test_submissions_are_in_the_order_of_their_numbers_and_unsent_ones_left_out(tmp_path: Path) -> None:
    for number in (2, 10, 9):
        folder = tmp_path / "launch" / str(number)
        folder.mkdir(parents=True)
        write_jobs(folder, [])
    (tmp_path / "launch" / "11").mkdir()
    assert [path.name for path in submissions(tmp_path)] == ["2", "9", "10"]
