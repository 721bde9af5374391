"""Chains of light steps through NeMo-Run on a real Slurm: order, failure, requeue, status."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.launch.orders import read_jobs
from pipeline.toolchains import ROOT
from tests.launch.cluster import Cluster
from tests.launch.conftest import Light

SECRET = "not-to-be-written"


def scripts(text: str) -> dict[str, str]:
    """Stage to batch script, out of what a dry run printed."""
    found = {}
    for part in text.split("# ==== ")[1:]:
        stage = part.partition(":")[0]
        found[stage] = part.partition("\n")[2].partition("# ---- ")[0]
    return found


def test_a_chain_runs_as_jobs_in_order_and_gives_what_it_gives_at_home(
    cluster: Cluster,
    light: Light,
    at_home: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    light.site["secrets"] = ["LIGHT_SECRET"]
    light.write(
        setup=[f'test "$(printenv LIGHT_SECRET | wc -c)" -eq {len(SECRET) + 1} || exit 9'],
        stages={"train": {"gpus_per_node": 2, "cpus_per_task": 3}},
    )
    status, said = light("run", "--dry-run")
    assert status == 2
    assert "LIGHT_SECRET, which this shell does not have" in said

    status, shown = light("run", "--dry-run", LIGHT_SECRET=SECRET)
    assert status == 0, shown
    assert not light.runs.exists(), "a dry run leaves nothing"
    for stage, script in scripts(shown).items():
        path = tmp_path / f"{stage}.sh"
        path.write_text(script)
        cluster("sbatch", "--test-only", str(path))

    with cluster.held():
        said = light.submit(LIGHT_SECRET=SECRET)
        jobs = read_jobs(light.submission)
        assert f"train     job {jobs[1].id}, when curate ended well" in said
        assert "\n".join(job.text.rstrip() + "\n" for job in jobs) in shown, (
            "the dry run printed what was sent"
        )
        curate, train, export = (cluster("scontrol", "show", "job", job.id, "--oneliner") for job in jobs)
        assert f"Dependency=afterok:{jobs[0].id}(unfulfilled)" in train
        assert f"Dependency=afterok:{jobs[0].id}(unfulfilled),afterok:{jobs[1].id}(unfulfilled)" in export
        assert "TresPerNode=gres:gpu:2" in train
        assert "TresPerNode" not in curate
        assert "CPUs/Task=3" in train
        assert "--cpus-per-task=3 bash" in jobs[1].text, "srun does not take it over from the job"

        for _ in range(20):  # Slurm looks at dependencies and at the partition in turns, and names the last
            status, shown = light("status")
            assert status == 0, shown
            if "waits for curate and train" in shown:
                break
            time.sleep(0.5)
        assert "waits for curate and train" in shown
        status, said = light("run", LIGHT_SECRET=SECRET)
        assert status == 2
        assert f"light is in the queue already: curate (job {jobs[0].id}," in said

    ended = light.wait_over()
    assert [job.state for job in ended.values()] == ["COMPLETED"] * 3
    assert light.published() == at_home
    assert "\x1b" not in Path(ended["train"].log).read_text(), "a log is no terminal"
    for path in light.submission.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_text(errors="replace"), path

    with monkeypatch.context() as patched:
        patched.setenv("PATH", "/nowhere")  # as when Slurm has forgotten the jobs
        assert [job.state for job in light.jobs().values()] == ["COMPLETED"] * 3
    status, said = light("run", LIGHT_SECRET=SECRET)
    assert (status, said.splitlines()[-1]) == (0, "nothing to submit")


def test_what_follows_a_failed_step_never_starts(cluster: Cluster, light: Light) -> None:
    light.write_documents({"text": "fine"}, {"words": "no text"})
    light.submit()
    jobs = light.wait_over()
    assert [job.state for job in jobs.values()] == ["FAILED", "CANCELLED", "CANCELLED"]
    assert jobs["curate"].exit_status == 1
    assert [path.name for path in (light.submission / "ends").iterdir()] == ["curate.0"]
    assert not list(light.runs.glob("light/train/*"))
    status, shown = light("status")
    assert status == 0, shown
    assert "exit status 1: the step failed" in shown
    assert "never started: curate did not end well" in shown
    assert "The same command tries again" in shown, "the end of its log"


def test_a_step_that_is_told_to_stop_or_preempted_goes_on_from_its_checkpoint(
    cluster: Cluster, light: Light, at_home: dict[str, Any]
) -> None:
    light.submit(LIGHT_PACE_S="0.2")
    light.wait_for_seal("step_008")
    cluster("scancel", "--signal=TERM", light.jobs()["train"].id)
    light.wait(lambda jobs: jobs["train"].state != "RUNNING")
    light.wait_for_seal("step_016")
    # Another's job of a partition that comes first, on every node.
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    cluster("sbatch", *urgent)
    light.wait(lambda jobs: jobs["train"].state != "RUNNING")
    jobs = light.wait_over()
    assert [job.state for job in jobs.values()] == ["COMPLETED"] * 3
    assert jobs["train"].restarts == 2
    went_on = [
        int(line.rpartition(" ")[2])
        for restart in (1, 2)
        for line in Path(jobs["train"].log.replace("_2.out", f"_{restart}.out")).read_text().splitlines()
        if "went on from step" in line
    ]
    assert len(went_on) == 2
    assert 8 <= went_on[0] < went_on[1]
    assert light.published() == at_home


def test_cancelled_jobs_do_not_come_back_and_their_work_is_kept(
    cluster: Cluster, light: Light, at_home: dict[str, Any]
) -> None:
    light.submit(LIGHT_PACE_S="0.5")
    light.wait_for_seal("step_008")
    status, said = light("cancel")
    assert status == 0, said
    assert "cancelled train" in said
    assert "cancelled export" in said
    jobs = light.wait_over()
    assert [job.state for job in jobs.values()] == ["COMPLETED", "CANCELLED", "CANCELLED"]
    time.sleep(1)
    assert not cluster("squeue", "--noheader")
    assert light("cancel") == (0, "no job waits or runs\n")

    assert "curate: up to date" in light.submit()
    jobs = light.wait_over()
    assert [job.state for job in jobs.values()] == ["COMPLETED"] * 2
    assert "went on from step" in Path(jobs["train"].log).read_text()
    assert light.published() == at_home


def test_what_slurm_refuses_is_told_in_its_words_and_leaves_nothing(cluster: Cluster, light: Light) -> None:
    light.write(stages={"train": {"partition": "nowhere"}})
    status, said = light("run")
    assert status == 2, said
    assert "Slurm refused a job: invalid partition specified: nowhere" in said
    assert not light.runs.exists()
    assert not cluster("squeue", "--noheader"), "the job before it was taken back"


def test_an_image_gets_the_runs_the_names_of_secrets_and_its_own_environments(
    cluster: Cluster, light: Light
) -> None:
    """The text only: the Slurm of the tests has no Pyxis."""
    light.site["secrets"] = ["LIGHT_SECRET"]
    light.write(container_image="registry#lifecycle:1", mounts=["/data:/data:ro"])
    status, shown = light("run", "--dry-run", LIGHT_SECRET=SECRET)
    assert status == 0, shown
    assert SECRET not in shown
    srun = next(line for line in shown.splitlines() if line.startswith("srun --output"))
    assert "--container-image registry#lifecycle:1 " in srun
    assert f"--container-mounts /data:/data:ro,{light.runs}:{light.runs},{ROOT}:{ROOT}," in srun
    assert "--container-env LIGHT_SECRET" in srun
    assert "export PYTHONPATH=/opt/nemo-lifecycle" in shown
    assert "exec /opt/nemo-lifecycle/.venvs/controller/bin/python -m" in shown
    assert "LIFECYCLE_VENVS" not in shown
