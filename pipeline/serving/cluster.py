"""An export on GPUs of others: one file of values, and what compose, Helm and Slurm make of it.

::

    FOLDER/values.yaml         what is served, by which image, on how many GPUs, with which limits; for Helm as it is
    FOLDER/compose.env         one machine: the variables of deploy/compose.yaml, of the values
    FOLDER/gateway.json        the settings of the gateway in compose's container, of the values
    FOLDER/serve.sbatch        one or several nodes of a Slurm cluster, of the values
    FOLDER/gateway-slurm.json  the settings of the gateway on the first of them, of the values

:func:`values` and :func:`written` look at a recipe; the rest reads values alone, so that a person may change
``values.yaml`` and make the others again::

    python -m pipeline.serving.cluster FOLDER

Nothing here talks to a cluster or needs more than the controller has.  Digests of images are never made up: the values
have room for them, and neither Helm nor compose starts anything before a person has filled it.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import string
import sys
from pathlib import Path
from typing import Any

import yaml

from pipeline import schema, strict_json
from pipeline.errors import UserError
from pipeline.serving import repository, targets
from pipeline.serving.targets import IMAGES, TRTLLM

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Images of one's own: deploy/gateway/Dockerfile, and deploy/triton-multinode/Dockerfile, which rests on NVIDIA's.
REGISTRY = "registry.example.com"
GATEWAY_IMAGE = {"repository": f"{REGISTRY}/nemo-lifecycle-gateway", "tag": "0.1.0", "digest": ""}
IN_CONTAINER = "/etc/lifecycle"  # settings and the start script; keys and certificates beside it, in folders
TRITON = {"address": "127.0.0.1:18000", "metrics": "127.0.0.1:18002"}  # as triton.sh has it
PORTS = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002}
NODE_GPUS = 8  # of a machine, where neither the site nor the recipe says
LAYOUT = 5  # parts of runs/RECIPE/export/ID/repository
TRITON_ENDS_S = 60  # beyond the gateway's drain_s: Triton's own end, and some air


def written(folder: Path, recipe: schema.Recipe, identity: str, exported: Path) -> list[Path]:
    """Write everything for an export of a recipe; returns the files.

    ``identity`` is the export's, ``exported`` its Triton model repository
    (``runs/RECIPE/export/ID/repository``).  Raises :class:`UserError` for what cannot be served so.
    """
    cluster = recipe.site.kubernetes
    gpus = cluster.gpus or recipe.site.slurm.gpus_per_node or recipe.launch.gpus or NODE_GPUS
    made = values(recipe.export, identity, recipe.deploy, gpus)
    local = made["local"]
    local["repository"], local["settings"] = str(exported.absolute()), str(folder.absolute())
    made["model"]["claim"] = {"name": cluster.claim or "", "path": "/".join(exported.parts[-LAYOUT:])}
    made["gpus"]["resource"] = cluster.gpu_resource
    made["image"]["pullSecrets"] = list(cluster.pull_secrets)
    made["nodeSelector"] = dict(label.split("=", 1) for label in cluster.node_selector)
    made["tolerations"] = list(cluster.tolerations)
    asked = {"cpu": cluster.cpu, "memory": cluster.memory}
    made["triton"]["resources"] |= {key: value for key, value in asked.items() if value}
    if cluster.shared_memory:
        made["triton"]["sharedMemory"] = cluster.shared_memory
    wanted = ("account", "partition", "qos", "constraint", "time")
    slurm = dataclasses.asdict(recipe.site.slurm)
    made["slurm"] = {name: slurm[name] for name in wanted if slurm[name] is not None}
    return write(folder, made)


def values(export: schema.Export, identity: str, deploy: schema.Deploy, gpus_per_node: int) -> dict[str, Any]:
    """The values of an export on machines with so many GPUs.

    Raises :class:`UserError` for a target that no container serves, and for a layout that does not fill machines.
    """
    if export.target not in IMAGES:
        raise UserError(
            f"export.target is {export.target}, which this machine serves: lifecycle deploy; a cluster of GPUs serves "
            f"{', '.join(IMAGES)}"
        )
    world = export.serving.tensor * export.serving.pipeline
    each, nodes = _layout(export, world, gpus_per_node)
    image = IMAGES[export.target]
    name = export.model_name
    limits = dataclasses.asdict(deploy.limits)
    return {
        "model": {
            "name": name,
            "identity": identity,
            "target": export.target,
            "weights": export.weights,
            "routes": repository.models(export),
            "source": "claim",
            "claim": {"name": "", "path": ""},
        },
        "image": {"repository": image.repository, "tag": image.tag, "digest": ""},
        "gpus": {"perPod": each, "resource": "nvidia.com/gpu", "kind": export.gpu or ""},
        "multinode": _group(name, nodes, image.tag),
        "triton": {
            "mode": "spawn" if export.target == TRTLLM and world > 1 else "alone",
            "resources": {"cpu": str(4 * each), "memory": f"{32 * each}Gi"},
            "sharedMemory": f"{4 * each}Gi",
        },
        "gateway": {
            "image": dict(GATEWAY_IMAGE),
            "keysSecret": f"{_label(name)}-keys",
            "tlsSecret": f"{_label(name)}-tls" if deploy.tls_certificate else "",
            "settings": {
                "probe_every_s": deploy.probe_every_s,
                "limits": {key: value for key, value in limits.items() if value is not None},
            },
        },
        # One GPU takes some seconds, a model of hundreds of GB many minutes to be read.
        "startSeconds": max(deploy.start_timeout_s, 1800),
        "local": {
            "host": deploy.host,
            **{key: getattr(deploy, key) for key in PORTS},
            "tls": deploy.tls_certificate is not None,  # tls.crt and tls.key lie beside the settings
            "repository": "",
            "settings": "",
            # Of the images that compose names itself; python: what the gateway's is built on.
            "digests": {"prometheus": "", "grafana": "", "python": ""},
        },
        "slurm": {},
    }


def _layout(export: schema.Export, world: int, gpus_per_node: int) -> tuple[int, int]:
    """GPUs of a pod or node, and how many of them."""
    if world <= gpus_per_node:
        if export.target == targets.TRTLLM_ENGINE and world > 1:
            raise UserError(
                f"export.serving asks for {world} GPUs: {export.target} is served on one here; export.target={TRTLLM} "
                "takes several"
            )
        return world, 1
    if world % gpus_per_node:
        raise UserError(
            f"export.serving asks for tensor {export.serving.tensor} x pipeline {export.serving.pipeline} = {world} "
            f"GPUs, which do not fill machines of {gpus_per_node}"
        )
    if export.target != TRTLLM:
        raise UserError(
            f"export.serving asks for {world} GPUs and a machine has {gpus_per_node}: several machines serve "
            f"export.target={TRTLLM} alone"
        )
    return gpus_per_node, world // gpus_per_node


def _group(name: str, nodes: int, tag: str) -> dict[str, Any]:
    """What pods that make one replica together need besides: an image with an ssh server, and keys."""
    if nodes == 1:
        return {"size": 1}
    image = {"repository": f"{REGISTRY}/tritonserver-multinode", "tag": tag, "digest": ""}
    return {"size": nodes, "image": image, "sshSecret": f"{_label(name)}-ssh"}


def gateway_settings(values: dict[str, Any], *, container: bool = True) -> dict[str, Any]:
    """The gateway's settings file.

    In a container it listens to all who reach the container's own network, which is not the machine's; else, on a
    node, where ``local.host`` says, with the keys beside the settings.
    """
    local = values["local"]
    if container:
        at: dict[str, Any] = {"host": "0.0.0.0", "metrics_host": "0.0.0.0", **PORTS}
        keys, certificates = f"{IN_CONTAINER}/keys", f"{IN_CONTAINER}/tls"
    else:
        at = {
            "host": local["host"],
            "metrics_host": "127.0.0.1",
            **{key: local[key] for key in PORTS},
        }
        keys = certificates = local["settings"]
    at["keys_file"] = f"{keys}/keys"
    if local["tls"]:
        at |= {"tls_certificate": f"{certificates}/tls.crt", "tls_key": f"{certificates}/tls.key"}
    version = {
        "identity": values["model"]["identity"],
        **TRITON,
        "models": values["model"]["routes"],
    }
    return {**values["gateway"]["settings"], **at, "version": version}


def compose_environment(values: dict[str, Any]) -> str:
    """The variables of ``deploy/compose.yaml``.  Raises :class:`UserError` where one machine is too small."""
    nodes = values["multinode"]["size"]
    if nodes > 1:
        raise UserError(
            f"the model is laid over {nodes} machines and compose has one: Helm and Slurm serve several"
        )
    local, triton = values["local"], values["triton"]
    own = {"cpu": "2", "memory": "1Gi"} | values["gateway"].get("resources", {})
    words = {
        "TRITON_REPOSITORY": values["image"]["repository"],
        "TRITON_DIGEST": values["image"]["digest"],
        **{f"{name.upper()}_DIGEST": digest for name, digest in local["digests"].items()},
        "GATEWAY_IMAGE": image_name(values["gateway"]["image"]),
        "TRITON_MODE": triton["mode"],
        "IDENTITY": values["model"]["identity"],
        "REPOSITORY": local["repository"],
        "SETTINGS": local["settings"],
        "GPUS": values["gpus"]["perPod"],
        "SHARED_MEMORY": _bytes(triton["sharedMemory"]),
        "TRITON_MEMORY": _bytes(triton["resources"]["memory"]),
        "TRITON_CPUS": triton["resources"]["cpu"],
        "GATEWAY_MEMORY": _bytes(own["memory"]),
        "GATEWAY_CPUS": own["cpu"],
        "LISTEN": local["host"],
        "HTTP_PORT": local["http_port"],
        "GRPC_PORT": local["grpc_port"],
        "DRAIN": f"{_drain(values) + TRITON_ENDS_S}s",
    }
    lines = "".join(f"{key}={shlex.quote(str(value))}\n" for key, value in words.items())
    return (
        "# Made of values.yaml:  docker compose --env-file THIS -f deploy/compose.yaml up --detach\n" + lines
    )


def slurm_script(values: dict[str, Any]) -> str:
    """A job for ``sbatch``: Triton on every GPU of the nodes, the gateway on the first."""
    local, slurm, size = values["local"], values["slurm"], values["multinode"]["size"]
    each, together = values["gpus"]["perPod"], values["triton"]["mode"] == "spawn"
    options = "".join(f"#SBATCH --{key}={value}\n" for key, value in slurm.items())
    drain = _drain(values)
    words = {
        "name": values["model"]["name"],
        "job": f"lifecycle-{_label(values['model']['name'])}",
        "nodes": size,
        "tasks": each if together else 1,
        "gpus": each,
        "options": options,
        "notice": drain + TRITON_ENDS_S,
        # TensorRT-LLM over several GPUs is a process for each; any other engine starts its own.
        "mode": "rank" if together else "alone",
        "image": shlex.quote(image_name(values["image"]).replace("/", "#", 1)),
        "identity": shlex.quote(values["model"]["identity"]),
        "repository": shlex.quote(local["repository"]),
        "settings": shlex.quote(local["settings"]),
    }
    return _Sheet((DEPLOY / "slurm" / "serve.sbatch").read_text(encoding="utf-8")).substitute(words)


def write(folder: Path, values: dict[str, Any]) -> list[Path]:
    """Write the values and what is made of them; compose's file where one machine is enough."""
    texts = {"values.yaml": yaml.safe_dump(values, sort_keys=False)}
    if values["multinode"]["size"] == 1:
        texts["compose.env"] = compose_environment(values)
        texts["gateway.json"] = _json(gateway_settings(values))
    texts["serve.sbatch"] = slurm_script(values)
    texts["gateway-slurm.json"] = _json(gateway_settings(values, container=False))
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        found.append(folder / name)
    return found


def image_name(image: dict[str, Any]) -> str:
    """What a container engine is asked for: the digest where it is known, else the tag."""
    return f"{image['repository']}{'@' + image['digest'] if image['digest'] else ':' + image['tag']}"


def _json(content: dict[str, Any]) -> str:
    return strict_json.dumps(content, indent=2) + "\n"


def _drain(values: dict[str, Any]) -> int:
    return int(values["gateway"]["settings"]["limits"]["drain_s"])


def _bytes(quantity: str) -> str:
    """A quantity of Kubernetes as compose writes it: 4Gi is 4g."""
    return quantity.removesuffix("i").lower()


def _label(name: str) -> str:
    """A model's name as the name of a Kubernetes object."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def read(folder: Path) -> dict[str, Any]:
    """The values of a folder.  Raises :class:`UserError` for a file that is not there or not what was written."""
    file = folder / "values.yaml"
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file} is no YAML: {error}") from None
    sections = ("model", "image", "gpus", "multinode", "triton", "gateway", "local", "slurm")
    lacking = [name for name in sections if not isinstance(found, dict) or name not in found]
    if lacking:
        raise UserError(f"{file} is not what a deployment writes: {', '.join(lacking)} is missing")
    assert isinstance(found, dict)
    return found


def main(arguments: list[str]) -> int:
    """Make the other files of a folder again from its ``values.yaml``; exit status 2 for a user's mistake."""
    if len(arguments) != 1:
        print("usage: python -m pipeline.serving.cluster FOLDER", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    try:
        found = write(folder, read(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    except (KeyError, TypeError) as error:  # a section without what it had
        print(f"error: {folder / 'values.yaml'} is not what a deployment writes: {error}", file=sys.stderr)
        return 2
    print("\n".join(map(str, found)))
    return 0


class _Sheet(string.Template):
    """A template whose dollar signs are the shell's."""

    delimiter = "@"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
