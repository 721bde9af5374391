"""What a cluster would read of a deployment, checked before anybody sends it.

The Kubernetes manifests are rendered by Helm's own library and held to Kubernetes' published schemas; a Slurm script
is read by the shell.

    python -m pipeline.serving.manifests FOLDER     # FOLDER/values.yaml -> FOLDER/manifests.yaml; what was found, in JSON

Runs in the toolchain ``charts``; :func:`made` starts it from anywhere.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline import strict_json
from pipeline.toolchains import ROOT, Toolchain

CHART = ROOT / "deploy" / "helm" / "lifecycle"
CHARTS = "charts"  # the toolchain
KUBERNETES = "1.31"  # the oldest that is supported
OF_ITS_OWN = ("LeaderWorkerSet",)  # kinds that Kubernetes' schemas do not have


@dataclass(frozen=True)
class Made:
    """``checked``: what was held to what; ``faults`` in words; ``not_executed``: what could not be looked at."""

    checked: list[str]
    faults: list[str]
    not_executed: list[str]


def made(folder: Path) -> Made:
    """Render and check the values in a folder, where the toolchain that can is installed."""
    toolchain = Toolchain(CHARTS)
    if not toolchain.ready():
        return Made(
            [], [], [f"the chart was not rendered: its toolchain is not installed (make env-{CHARTS})"]
        )
    done = toolchain.ask("pipeline.serving.manifests", str(folder.resolve()))
    if done.returncode:
        return Made([], [f"the chart cannot be rendered: {done.stderr.strip().splitlines()[-1]}"], [])
    return Made(**json.loads(done.stdout))


def script(folder: Path) -> Made:
    """Check the Slurm script in a folder, by the shell."""
    shell = subprocess.run(
        ["bash", "-n", str(folder / "serve.sbatch")], capture_output=True, text=True, check=False
    )
    faults = [f"serve.sbatch: {shell.stderr.strip()}"] if shell.returncode else []
    return Made(["serve.sbatch by the shell, unexecuted"], faults, ["no container engine, no cluster"])


def render(folder: Path) -> Made:
    """:func:`made`, in the toolchain itself."""
    import helm_python as helm
    import kubernetes_validate

    values = yaml.safe_load((folder / "values.yaml").read_text(encoding="utf-8"))
    # A dry run looks at what is there already; Helm itself waits for the digests.
    lacking = [image["repository"] for image in _images(values) if not image["digest"]]
    if lacking:
        values["requireDigests"] = False
    found = helm.lint(CHART, values, strict=True, kube_version=f"{KUBERNETES}.0")
    faults = [f"helm lint: {error}" for error in found["errors"]]
    with helm.Chart.load(CHART) as chart:
        rendered: dict[str, str] = chart.render(values, name=values["model"]["name"], namespace="serving")
    texts = [text for path, text in sorted(rendered.items()) if path.endswith(".yaml") and text.strip()]
    (folder / "manifests.yaml").write_text("\n---\n".join(texts) + "\n", encoding="utf-8")
    objects: list[dict[str, Any]] = [each for text in texts for each in yaml.safe_load_all(text) if each]
    unknown = []
    for each in objects:
        if each["kind"] in OF_ITS_OWN:
            unknown.append(f"the {each['kind']} was not held to its controller's schema, which is not here")
            continue
        try:
            kubernetes_validate.validate(each, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            faults.append(f"{each['kind']} {each['metadata']['name']}: {error.message}")
    checked = [
        f"the chart by Helm's strict lint and rendering, {len(objects)} objects in {folder / 'manifests.yaml'}",
        f"{len(objects) - len(unknown)} of them by Kubernetes {KUBERNETES}'s published schemas",
    ]
    if lacking:
        unknown.append(f"Helm refuses a release until values.yaml has the digests of {', '.join(lacking)}")
    return Made(checked, faults, [*unknown, "no container engine, no cluster"])


def _images(values: dict[str, Any]) -> list[dict[str, Any]]:
    """The images of a release, as the chart's own helper has them."""
    several = values["multinode"]["size"] > 1
    fetched = values["model"].get("objectStore", {}).get("image")
    chosen = [values["multinode"]["image"] if several else values["image"], values["gateway"]["image"]]
    return [*chosen, *([fetched] if values["model"]["source"] == "objectStore" else [])]


if __name__ == "__main__":
    print(strict_json.dumps(vars(render(Path(sys.argv[1])))))
