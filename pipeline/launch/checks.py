"""Rules of a site's settings that no single type or range can state."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from pipeline import schema

OURS = ("dependency", "error", "job-name", "kill-on-invalid-dep", "output", "requeue", "signal", "time")
TIME = re.compile(r"(?:(\d+)-)?(\d+):(\d+)(?::(\d+))?")
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kKMGTPE]i?)?")
DNS_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")
PER_STAGE = {
    "slurm": [field.name for field in dataclasses.fields(schema.Slurm) if field.name != "stages"],
    "kubernetes": ["cpu", "memory", "gpus"],
}


def site_faults(site: schema.Site) -> Iterator[tuple[str, str]]:
    """All broken rules of a site as (setting, message)."""
    for index, name in enumerate(site.secrets):
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            yield (
                f"site.secrets.{index}",
                "give the name of an environment variable and nothing else; values are never written down",
            )
    if site.kind == "slurm":
        broken = list(_stages("slurm", site.slurm))
        yield from broken
        if not broken:
            for where, section in _each("slurm", site.slurm):
                yield from _slurm(where, section)
    if site.kind == "kubernetes":
        broken = list(_stages("kubernetes", site.kubernetes))
        yield from broken
        yield from _kubernetes(site)
        if not broken:
            for where, section in _each("kubernetes", site.kubernetes):
                yield from _quantities(where, section)


def seconds(limit: str) -> int | None:
    """A time limit of sbatch(1) in seconds: D-HH:MM[:SS] or HH:MM:SS; None for anything else."""
    found = TIME.fullmatch(limit)
    if found is None or (found[1] is None and found[4] is None):
        return None  # MM:SS and D-HH:MM look alike to a reader; one of them is not taken
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def _each(name: str, section: Any) -> Iterator[tuple[str, Any]]:
    yield f"site.{name}", section
    for stage in section.stages:
        yield f"site.{name}.stages.{stage}", schema.for_stage(section, stage)


def _stages(name: str, section: Any) -> Iterator[tuple[str, str]]:
    kinds = schema.hints(type(section))
    for stage, settings in section.stages.items():
        where = f"site.{name}.stages.{stage}"
        if stage not in schema.ALL_STAGES:
            yield where, f"there is no stage {stage!r}; the stages are {', '.join(schema.ALL_STAGES)}"
        elif not isinstance(settings, dict):
            yield where, f"expected SETTING: VALUE, found {settings!r}"
        else:
            for key, value in settings.items():
                if key not in PER_STAGE[name]:
                    known = ", ".join(PER_STAGE[name])
                    yield f"{where}.{key}", f"there is no setting {key!r} for one stage; there are {known}"
                elif not _fits(value, kinds[key]):
                    yield f"{where}.{key}", f"{value!r} is not what site.{name}.{key} takes"


def _fits(value: Any, kind: Any) -> bool:
    plain: dict[Any, Any] = {str: str, int: int, bool: bool, str | None: str | None}
    expected = plain.get(kind, list if schema.item_type(kind) else dict)
    return isinstance(value, expected) and not (kind is int and isinstance(value, bool))


def _slurm(where: str, slurm: schema.Slurm) -> Iterator[tuple[str, str]]:
    limit = seconds(slurm.time)
    if limit is None:
        yield (
            f"{where}.time",
            f"{slurm.time!r} is no time limit; write HH:MM:SS or D-HH:MM:SS, in quotes: '12:00:00' without "
            "them is a number in YAML",
        )
    elif limit < slurm.checkpoint_s + 60:
        yield (
            f"{where}.time",
            f"leaves no time for work: a step is told to stop {slurm.checkpoint_s} s before the end "
            "(site.slurm.checkpoint_s), up to a minute early",
        )
    for key, values in (("container_image", [slurm.container_image or ""]), ("mounts", slurm.mounts)):
        if not all(re.fullmatch(r"[\w./@+=:#-]*", value) for value in values):
            yield (
                f"{where}.{key}",
                "NeMo-Run writes it into a script without quotes: no spaces, no letters of the shell",
            )
    for index, mount in enumerate(slurm.mounts):
        if not re.fullmatch(r"[^:,]+:[^:,]+(:[a-z]+)?", mount):
            yield f"{where}.mounts.{index}", f"{mount!r} is not HOST:CONTAINER"
    if slurm.mounts and not slurm.container_image:
        yield f"{where}.mounts", "means nothing without site.slurm.container_image"
    for option in slurm.options:
        if option.replace("_", "-") in OURS:
            yield f"{where}.options.{option}", "is set by the chain itself, or has a setting of its own"
        elif not re.fullmatch(r"[a-z][a-z0-9_-]+", option):
            yield f"{where}.options.{option}", "give the option's long name without dashes before it"


def _kubernetes(site: schema.Site) -> Iterator[tuple[str, str]]:
    cluster = site.kubernetes
    if not cluster.image:
        yield "site.kubernetes.image", "is missing: the image with the repository and its environments"
    if not cluster.claim:
        yield (
            "site.kubernetes.claim",
            "is missing: the PersistentVolumeClaim that outlives the pods, with data and runs",
        )
    for key in ("namespace", "claim", "secret", "service_account"):
        name = getattr(cluster, key)
        if name and not DNS_NAME.fullmatch(name):
            yield (
                f"site.kubernetes.{key}",
                f"{name!r} is no name of Kubernetes: lower case, digits and dashes",
            )
    if site.secrets and not cluster.secret:
        yield "site.kubernetes.secret", "is missing: the Secret that holds the keys in site.secrets"
    for index, label in enumerate(cluster.node_selector):
        if "=" not in label:
            yield f"site.kubernetes.node_selector.{index}", f"{label!r} is not name=value"
    for key in ("mount", "root", "python"):
        if not getattr(cluster, key).startswith("/"):
            yield f"site.kubernetes.{key}", "give an absolute path"
    if cluster.shared_memory and not QUANTITY.fullmatch(cluster.shared_memory):
        yield "site.kubernetes.shared_memory", f"{cluster.shared_memory!r} is no quantity; e.g. 16Gi"


def _quantities(where: str, cluster: schema.Kubernetes) -> Iterator[tuple[str, str]]:
    for key in ("cpu", "memory"):
        value = getattr(cluster, key)
        if value is not None and not QUANTITY.fullmatch(value):
            yield f"{where}.{key}", f"{value!r} is no quantity; e.g. 8, 500m, 64Gi"
