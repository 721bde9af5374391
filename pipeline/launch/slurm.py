"""The steps of a chain as jobs of Slurm, through NeMo-Run's ``SlurmExecutor``.

Runs in the ``launch`` toolchain on a machine that has ``sbatch`` (a login node) and shares
the runs folder with the nodes.  What NeMo-Run writes, it also submits: the text of a dry run
is the file that sbatch is given.

Three things are ours.  A job starts only when those that it rests on ended with status 0
(``afterok``), and is taken out of the queue when one did not.  A job that was told to stop
(by preemption, the coming end of its time, or ``scancel --signal=TERM``) ends with 143 once
its checkpoint is written, and is put back into the queue.  And each end leaves its exit
status on the shared disk, because Slurm forgets a job after some minutes.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

from pipeline import schema
from pipeline.errors import UserError
from pipeline.graph import TRAINING
from pipeline.launch import muster
from pipeline.launch.orders import ENDS, Job, Order, StepOrder

SAFE_PATH = re.compile(r"[\w./@+=-]+")
MUSTER = "muster"
INTERRUPTED = 143  # the controller's exit status after SIGTERM


def send(order: Order, folder: Path, dry: bool) -> list[Job]:
    """Write every step's script, and unless ``dry`` submit them; returns the jobs.

    ``NEMORUN_HOME`` must be :func:`home` already.  Raises :class:`UserError` for what Slurm
    refuses, in Slurm's words; jobs that were submitted before are taken back then.
    """
    _check_paths(order, folder)
    import nemo_run
    from nemo_run.core.tunnel.client import LocalTunnel

    site: schema.Site = schema.from_plain(schema.Site, order.site)
    experiment = nemo_run.Experiment(
        order.recipe,
        id=f"{order.recipe}_{order.number}",
        base_dir=str(home(folder)),
        log_level="WARNING",
        clean_mode=True,
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
        threadpool_workers=1,
    )
    with experiment:
        for step in order.steps:
            tunnel = LocalTunnel(job_dir=str(home(folder) / "experiments"))
            experiment.add(
                nemo_run.Script(inline=_command(order, step, site, folder)),
                executor=_executor(order, step, site, folder, tunnel),
                name=step.stage,
                dependencies=step.after,
            )
        if dry:
            experiment.dryrun(log=False, delete_exp_dir=False)
        else:
            _submit(experiment)
    by_stage = {job.id: job for job in experiment.jobs}
    return [_job(step, by_stage[step.stage]) for step in order.steps]


def home(folder: Path) -> Path:
    """NeMo-Run's folder for a submission; ``NEMORUN_HOME`` before NeMo-Run is imported."""
    return folder / "experiment"


def _executor(order: Order, step: StepOrder, site: schema.Site, folder: Path, tunnel: Any) -> Any:
    import nemo_run

    slurm = schema.for_stage(site.slurm, step.stage)
    extra = {name.replace("-", "_"): value for name, value in slurm.options.items()}
    return nemo_run.SlurmExecutor(
        account=slurm.account,
        partition=slurm.partition,
        qos=slurm.qos,
        constraint=slurm.constraint,
        time=slurm.time,
        nodes=_nodes(step, slurm),
        ntasks_per_node=1,
        gpus_per_node=slurm.gpus_per_node or None,
        cpus_per_task=slurm.cpus_per_task or None,
        mem=slurm.mem,
        exclusive=slurm.exclusive or None,
        # To the steps, not to the script: it has to outlive them to see how they ended.
        signal=f"TERM@{slurm.checkpoint_s}",
        additional_parameters={**extra, "kill_on_invalid_dep": "yes"},
        dependency_type="afterok",
        container_image=slurm.container_image,
        container_mounts=_mounts(order, slurm, folder),
        # Names: Pyxis takes the values from the job's environment, not from the image's.
        container_env=list(site.secrets) or None,
        job_name_prefix=f"{order.recipe}.",
        srun_args=_srun(slurm),
        setup_lines=_setup(step, slurm, folder),
        packager=nemo_run.Packager(),
        tunnel=tunnel,
        poll_estimated_start_time=False,
    )


def _mounts(order: Order, slurm: schema.Slurm, folder: Path) -> list[str]:
    """The site's own, and what a step works on under the paths that it has here."""
    runs = folder.parents[2]  # RUNS/RECIPE/launch/NUMBER
    return list(dict.fromkeys([*slurm.mounts, f"{runs}:{runs}", f"{order.cwd}:{order.cwd}"]))


def _nodes(step: StepOrder, slurm: schema.Slurm) -> int:
    """Machines of a step: training alone is spread over several."""
    return max(1, slurm.nodes) if step.stage in TRAINING else 1


def _srun(slurm: schema.Slurm) -> list[str]:
    """What srun does not take over from the job: one task would be bound to one core."""
    cores = [f"--cpus-per-task={slurm.cpus_per_task}"] if slurm.cpus_per_task else []
    return ["--cpu-bind=none", *cores]


def _setup(step: StepOrder, slurm: schema.Slurm, folder: Path) -> str:
    """The lines of the batch script before the step: what happens when it ends, then the site's own."""
    ended = shlex.quote(str(folder / ENDS / step.stage))
    # Of several machines srun gives the highest status, and ends all when one fails: the controller's is what counts.
    several = [
        f'  told={_muster(step, folder)}/{muster.DISMISSED}; [ ! -f "$told" ] || status=$(cat "$told")'
    ]
    return "\n".join(
        [
            "lifecycle_end() {",
            "  status=$?",
            *(several if _nodes(step, slurm) > 1 else []),
            f'  echo "$status $(date -u +%Y-%m-%dT%H:%M:%SZ)" > {ended}."${{SLURM_RESTART_COUNT:-0}}"',
            # Only while it runs: a job that was cancelled must not come back.
            f'  if [ "$status" -eq {INTERRUPTED} ] && '
            f'[ "${{SLURM_RESTART_COUNT:-0}}" -lt {slurm.max_requeues} ] && '
            '[ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then',
            '    scontrol requeue "$SLURM_JOB_ID"',
            "  fi",
            '  exit "$status"',
            "}",
            "trap lifecycle_end EXIT",
            *slurm.setup,
        ]
    )


def _command(order: Order, step: StepOrder, site: schema.Site, folder: Path) -> str:
    """The script that srun starts on each node: the controller takes its place and its signals.

    On every further node of a step it is what waits for the controller's call.
    """
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(order.environment.items())]
    nodes = _nodes(step, schema.for_stage(site.slurm, step.stage))
    if nodes > 1:
        waits = shlex.join([step.command[0], "-m", "pipeline.launch.node"])
        exports += [
            f"export {muster.NODES}={nodes} {muster.NODE}=$SLURM_PROCID",
            f"export {muster.FOLDER}={_muster(step, folder)}",
            # Until it is listening, a signal must not end it.
            f"[ \"$SLURM_PROCID\" = 0 ] || {{ trap '' TERM; exec {waits}; }}",
        ]
    else:
        exports.append(f"export {muster.NODES}=1")
    return "\n".join(
        [f"cd {shlex.quote(order.cwd)} || exit 1", *exports, f"exec {shlex.join(step.command)}\n"]
    )


def _muster(step: StepOrder, folder: Path) -> str:
    """Where the machines of a step find each other, as a word of the shell."""
    return shlex.quote(str(folder / MUSTER / step.stage)) + '."$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'


def _submit(experiment: Any) -> None:
    from invoke.exceptions import UnexpectedExit

    try:
        experiment.run(detach=True)
    except UnexpectedExit as error:
        sent = [_number(job) for job in experiment.jobs if job.handle]
        if sent:
            subprocess.run(["scancel", *sent], check=False)
        lines = (error.result.stderr or error.result.stdout).strip().splitlines()
        refused = "; ".join(line.removeprefix("sbatch: error: ") for line in lines)
        raise UserError(f"Slurm refused a job: {refused}; nothing is left in the queue") from None


def _job(step: StepOrder, job: Any) -> Job:
    executor = job.executor
    script = Path(executor.experiment_dir) / f"{executor.job_name}_sbatch.sh"
    inner = Path(executor.job_dir) / "scripts" / f"{step.stage}.sh"
    # The numbers are known only once the jobs before are sent.
    waits = f" --dependency=afterok:{':'.join(f'<{stage}>' for stage in step.after)}" if step.after else ""
    parts = [
        f"# ==== {step.stage}: sbatch --requeue --parsable{waits} {script.name}",
        script.read_text(encoding="utf-8"),
        f"# ---- {step.stage}: {inner.name}, which srun starts",
        inner.read_text(encoding="utf-8"),
    ]
    log = str(executor.job_details.srun_stdout).replace("%j", "{id}")
    return Job(
        stage=step.stage,
        id=_number(job) if job.handle else "",
        text="\n".join(parts),
        log=log.replace("${SLURM_RESTART_COUNT:-0}", "{restart}"),
        after=step.after,
    )


def _number(job: Any) -> str:
    """Slurm's number out of NeMo-Run's handle, ``slurm_tunnel://SESSION/NUMBER/...``."""
    return str(job.handle).partition("://")[2].split("/")[1]


def _check_paths(order: Order, folder: Path) -> None:
    for path, what in ((str(folder), "runs folder (--runs FOLDER)"), (order.cwd, "working folder")):
        if not SAFE_PATH.fullmatch(path):
            raise UserError(
                f"{path}: NeMo-Run writes this path into its scripts without quotes; use a {what} whose path is "
                "made of letters, digits and . _ / @ + = -"
            )
    for text in (
        order.cwd,
        str(folder),
        *order.environment.values(),
        *(w for s in order.steps for w in s.command),
    ):
        if "/nemo_run" in text:
            raise UserError(
                f"{text}: NeMo-Run puts another path in the place of '/nemo_run' in its scripts; use a folder "
                "of another name"
            )
