"""Where a recipe runs: this machine, the jobs of a Slurm cluster, or a Kubernetes Job.

No setting of a site bears identity: the same step gives the same bytes wherever it runs.
How a chain is submitted to a cluster is in :mod:`pipeline.launch`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from pipeline.schema.declare import setting

KINDS = ("local", "slurm", "kubernetes")
place = partial(setting, identity=False)


@dataclass
class Slurm:
    """One job a step; names as in sbatch(1)."""

    account: str | None = place(None, "the account that is charged")
    partition: str | None = place(None, "the partition; null: the cluster's default")
    qos: str | None = place(None, "quality of service")
    constraint: str | None = place(None, "features that a node must have")
    time: str = place("04:00:00", "time limit of one job; a step that needs longer goes on in the next")
    nodes: int = place(0, "machines of a training step; 0: as many as launch.nodes says", ge=0)
    gpus_per_node: int = place(0, "GPUs of one step on each of its machines", ge=0)
    cpus_per_task: int = place(0, "cores of one step (0: the partition's default)", ge=0)
    mem: str | None = place(
        None, "memory of one step on its machine, e.g. 64G; null: the partition's default"
    )
    exclusive: bool = place(False, "take whole machines")
    options: dict[str, Any] = place(
        {}, "any other option of sbatch by its long name; true for one without value"
    )
    container_image: str | None = place(
        None,
        "image that steps run in (Pyxis and Enroot); null: the environments of this machine, on a shared disk",
    )
    root: str = place("/opt/nemo-lifecycle", "where the image has the repository and its environments")
    mounts: list[str] = place(
        [], "HOST:CONTAINER folders of the image; the runs and this folder are there by themselves"
    )
    setup: list[str] = place([], "shell lines that a job begins with, e.g. module load cuda")
    python: str | None = place(
        None, "the controller's interpreter on the nodes; null: the one that submits, or that of the image"
    )
    checkpoint_s: int = place(
        120, "seconds before the time limit at which a step is told to write its checkpoint", ge=10
    )
    max_requeues: int = place(50, "how often one job may be put back into the queue", ge=0)
    stages: dict[str, Any] = place({}, "settings of this section for one stage: {curate: {partition: cpu}}")


@dataclass
class Kubernetes:
    """One Job for the chain, with a container a step, in order."""

    context: str | None = place(None, "context of the kubeconfig; null: its current one")
    namespace: str = place("default", "the namespace")
    image: str | None = place(None, "image with the repository and its environments")
    root: str = place("/opt/nemo-lifecycle", "where the image has the repository")
    python: str = place(
        "/opt/nemo-lifecycle/.venvs/controller/bin/python", "the controller's interpreter in the image"
    )
    claim: str | None = place(None, "PersistentVolumeClaim that holds data and runs")
    mount: str = place("/workspace", "where the claim is mounted; relative paths of the recipe start here")
    cpu: str | None = place(None, "cores that a step asks for, e.g. '8'")
    memory: str | None = place(None, "memory that a step asks for and is held to, e.g. 64Gi")
    gpus: int = place(0, "GPUs of a step", ge=0)
    gpu_resource: str = place("nvidia.com/gpu", "the resource's name of a GPU")
    shared_memory: str | None = place(None, "size of /dev/shm, e.g. 16Gi; NCCL between GPUs needs it")
    secret: str | None = place(None, "Secret whose keys are the names in site.secrets")
    service_account: str | None = place(None, "service account of the pod")
    user: int = place(1000, "user and group that steps run as; the claim must be theirs to write", ge=1)
    pull_secrets: list[str] = place([], "Secrets to fetch the image with")
    node_selector: list[str] = place([], "labels that a node must have, each as name=value")
    tolerations: list[dict[str, Any]] = place([], "taints that the pod bears")
    runtime: str | None = place(
        None, "send a TrainJob of this runtime of Kubeflow Trainer 2.1, made by NeMo-Run, and no plain Job"
    )
    retries: int = place(0, "new pods after a step failed; eviction and preemption never count", ge=0)
    ttl_s: int = place(604_800, "seconds that the finished Job is kept for its status and logs", ge=60)
    stages: dict[str, Any] = place({}, "cpu, memory and gpus for one stage: {curate: {gpus: 0}}")


Section = TypeVar("Section", Slurm, Kubernetes)


def for_stage(section: Section, stage: str) -> Section:
    """The section as it is for one stage, its own settings laid over the common ones."""
    return dataclasses.replace(section, **section.stages.get(stage, {}))


@dataclass
class Plan:
    """What the plan of a run rests on (:mod:`pipeline.plan`). Never bears identity."""

    override_reason: str | None = place(
        None, "run a step although the plan says that it does not fit; the reason is recorded in its manifest"
    )
    example_tokens: int = place(
        0, "mean tokens of an example, for plans made before curation has run (0: the whole context)", ge=0
    )


@dataclass
class Site:
    """Where a recipe runs. Never bears identity."""

    name: str = place("local", "the site's name")
    kind: str = place("local", "this machine, or whose jobs the steps are", choices=KINDS)
    gpu: str | None = place(
        None, "kind of its GPUs (configs/gpus.yaml), for plans; null: found on this machine, else launch.gpu"
    )
    threads: int = place(0, "threads of a training or evaluation process (0: one per core)", ge=0)
    min_free_gb: float = place(2.0, "free disk that must be there before anything starts", ge=0)
    lease_s: float = place(
        60.0,
        "seconds without a sign of life after which a step's holder on another machine counts as dead",
        gt=0,
    )
    ray: str | None = place(
        None, "curate with Curator's executor on a Ray cluster: its address, or 'local' to start one"
    )
    grace_s: float = place(20.0, "seconds that an interrupted step may take to write a checkpoint", ge=0)
    secrets: list[str] = place(
        [], "names of environment variables that steps need; their values are never written down"
    )
    slurm: Slurm = field(default_factory=Slurm)
    kubernetes: Kubernetes = field(default_factory=Kubernetes)
