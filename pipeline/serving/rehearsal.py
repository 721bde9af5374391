"""An export without its model: the repository's text files, held to what reads them, and what is still missing.

    python -m pipeline.serving.rehearsal REPOSITORY     # what Triton's own schema refuses in its config.pbtxt files (JSON)

From settings alone, on any machine: no weights, no GPU, no container.  :func:`rehearse` writes what the export would
write as text and reads it back; it lists what the export adds, with sizes estimated from the model's shape, and
says what nobody executed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from pipeline import schema, strict_json
from pipeline.plan.place import GB
from pipeline.plan.reading import reading
from pipeline.plan.shapes import of_recipe
from pipeline.plan.shapes.shape import Shape
from pipeline.runner.base import folder as base_folder
from pipeline.serving import repository, targets
from pipeline.serving.engines import TENSORRT_LLM, VLLM
from pipeline.toolchains import Toolchain

UNKNOWN = "0" * 64  # an identity rests on what the steps before publish
# Bytes of a weight, scales included: in the layers' matrices, and elsewhere (embeddings, output layer, norms).
BYTES = {
    "fp32": (4.0, 4.0),
    "bf16": (2.0, 2.0),
    "int8": (1.0, 1.0),
    "int4": (0.5 + 2.5 / 32, 1.0),
    "fp8": (1.0, 2.0),
    "int8-sq": (1.0, 2.0),
    "int4-awq": (0.5 + 2.0 / 128, 2.0),
    "w4a8-awq": (0.5 + 2.0 / 128, 2.0),
    "nvfp4": (0.5 + 1.0 / 16, 2.0),
}
READERS = {targets.TRTLLM: TENSORRT_LLM, targets.VLLM: VLLM}
SERVING = "serving"  # the toolchain that has Triton's client


@dataclass(frozen=True)
class Added:
    """What the export itself would put at a path; ``bytes`` where they can be estimated."""

    path: str
    what: str
    bytes: float | None = None


@dataclass(frozen=True)
class Rehearsal:
    """``written`` below ``folder``; what was ``checked``, with all ``faults``; and what there is not."""

    folder: Path
    written: list[str]
    checked: list[str]
    faults: list[str]
    added: list[Added]
    not_executed: list[str]


def rehearse(settings: schema.Recipe, folder: Path, identity: str = UNKNOWN) -> Rehearsal:
    """Write the text files of the recipe's repository to ``folder`` (anew), and look at them."""
    export, context = settings.export, context_of(settings)
    files = repository.files(export, identity, context)
    shutil.rmtree(folder, ignore_errors=True)
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    checked, faults = _read_back(export, context, folder)
    missing = [
        f"the model was not read: no weights and no tokenizer are in {folder}, and no answer was held to the trained model's"
    ]
    refused = _refused_configs(folder)
    if refused is None:
        missing.append(
            f"config.pbtxt was not parsed: the {SERVING} toolchain is not installed (make env-serving)"
        )
    else:
        checked.append("config.pbtxt by Triton's own schema")
        faults += refused
    if targets.TARGETS[export.target].gpu:
        missing.append(
            f"no GPU and no container: neither {targets.TARGETS[export.target].meaning} nor Triton was started on it"
        )
    else:
        missing.append("no Triton was started on it")
    return Rehearsal(folder, sorted(files), checked, faults, added(settings), missing)


def context_of(settings: schema.Recipe) -> int:
    """What will be served of the model's context; of a base that is not on this machine, as much as the recipe says."""
    base = base_folder(settings.model) if settings.model.base is not None else None
    try:
        config = json.loads((base / "config.json").read_text(encoding="utf-8")) if base else {}
    except (OSError, ValueError):  # told where the base is checked
        config = {}
    planned, said = settings.model.context, settings.export.serving.max_length
    trained = not {"pretrain", "train", "align"}.isdisjoint(settings.stages)
    known = int(config.get("max_position_embeddings") or max(planned, said or 0))
    return repository.served_context(settings.export, planned if trained else None, known)


def _read_back(export: schema.Export, context: int, folder: Path) -> tuple[list[str], list[str]]:
    """What was looked at in the files on the disk, and what is wrong with them."""
    checked = ["Python files by compiling them"]
    faults = [f"{setting}: {why}" for setting, why in repository.argument_faults(export, context)]
    for file in sorted(folder.rglob("*.py")):
        try:
            compile(file.read_text(encoding="utf-8"), str(file), "exec")
        except SyntaxError as error:
            faults.append(str(error))
    version = folder / repository.checkpoint_place(export)
    if export.target in READERS:
        checked.append(f"the engine's arguments by what {READERS[export.target]} takes")
    if export.target == targets.TRTLLM:
        said: dict[str, Any] = yaml.safe_load((version / "model.yaml").read_text(encoding="utf-8"))
        kept = {key: value for key, value in said.items() if key not in ("model", "triton_config")}
        faults += _differences("model.yaml", kept, repository.llm_arguments(export, context))
        checked.append("model.yaml by reading it back")
    elif export.target == targets.VLLM:
        said = json.loads((version / "model.json").read_text(encoding="utf-8"))
        faults += _differences("model.json", said, repository.vllm_arguments(export, context))
        checked.append("model.json by reading it back")
    elif export.target == targets.TRTLLM_ENGINE:
        shell = subprocess.run(
            ["sh", "-n", str(version / "build.sh")], capture_output=True, text=True, check=False
        )
        faults += [f"build.sh: {shell.stderr.strip()}"] if shell.returncode else []
        checked.append("build.sh by the shell, unexecuted")
    return checked, faults


def _differences(name: str, found: dict[str, Any], meant: dict[str, Any]) -> list[str]:
    keys = sorted(key for key in {*found, *meant} if found.get(key) != meant.get(key))
    return [f"{name}: {key} reads {found.get(key)!r}, and was {meant.get(key)!r}" for key in keys]


# -- Triton's own schema -----------------------------------------------------------------------


def config_faults(folder: Path) -> list[str]:
    """What ``inference.ModelConfig``, as text, refuses of a repository's configurations; needs ``tritonclient``."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    found = []
    for file in sorted(folder.glob("*/config.pbtxt")):
        name = file.parent.name
        try:
            config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
        except text_format.ParseError as error:
            found.append(f"{name}/config.pbtxt: {error}")
            continue
        if config.name != name:
            found.append(f"{name}/config.pbtxt: names the model {config.name!r}")
        if not config.backend:
            found.append(f"{name}/config.pbtxt: names no backend")
    return found


def _refused_configs(folder: Path) -> list[str] | None:
    """:func:`config_faults`, in the toolchain that can say; None where it is not installed."""
    if find_spec("tritonclient") is not None:
        return config_faults(folder)
    toolchain = Toolchain(SERVING)
    if not toolchain.ready():
        return None
    done = toolchain.ask("pipeline.serving.rehearsal", str(folder.resolve()))
    done.check_returncode()
    said: list[str] = json.loads(done.stdout)
    return said


# -- what there is not ---------------------------------------------------------------------------


def weight_bytes(shape: Shape, weights: str) -> float:
    """Bytes of a model in a precision; an estimate from its shape."""
    matrices = sum(inner * outer * copies for _, inner, outer, copies in shape.linear_sides())
    inside, elsewhere = BYTES[weights]
    return matrices * inside + (shape.parameters - matrices) * elsewhere


def added(settings: schema.Recipe) -> list[Added]:
    """What the export writes besides the text files, in the order in which it does."""
    export, model = settings.export, of_recipe(settings.model)
    served, place = weight_bytes(model, export.weights), repository.checkpoint_place(export)
    bundle = weight_bytes(model, "fp32")
    found = [Added("bundle/", "Hugging Face folder in fp32 with tokenizer and model card", bundle)]
    if export.target == targets.CPU_OPENVINO:
        for name in repository.fronts(export):
            found.append(Added(f"repository/{name}/1/openvino/", f"OpenVINO IR in {export.weights}", served))
    elif export.target == targets.TRTLLM_ENGINE:
        ranks = f"{export.serving.tensor} files, one for each GPU"
        found.append(
            Added(f"repository/{place}/checkpoint/", f"{export.weights} checkpoint, {ranks}", served)
        )
        found.append(Added(f"repository/{place}/tokenizer/", "tokenizer and generation defaults"))
        found.append(Added(f"repository/{place}/engine/", "engines, by build.sh where the GPUs are", served))
    else:
        found.append(
            Added(f"repository/{place}/checkpoint/", f"{export.weights} checkpoint and tokenizer", served)
        )
    if targets.TARGETS[export.target].adapters == targets.REQUEST:
        for name, path in export.adapters.items():
            file = Path(str(path)) / "adapter_model.safetensors"
            size = float(file.stat().st_size) if file.is_file() else None
            found.append(Added(f"repository/{place}/adapters/{name}/", "adapter, as it is given", size))
    found.append(
        Added("parity.json, export.json", "what was measured, and the names that a client may ask for")
    )
    return found


def words_of(done: Rehearsal, settings: schema.Recipe) -> str:
    """The rehearsal for a person."""
    export, model = settings.export, of_recipe(settings.model)
    serving = export.serving
    lines = [
        f"repository for {export.target} ({export.weights}): {len(done.written)} text files in {done.folder}"
    ]
    lines += [f"  {path}" for path in done.written if not path.endswith(".py")]
    lines += [f"checked: {each}" for each in done.checked]
    lines += [f"fault: {each}" for each in done.faults]
    lines.append("the export adds:")
    for each in done.added:
        size = "" if each.bytes is None else f", about {_size(each.bytes)}"
        lines.append(f"  {each.path}  {each.what}{size}")
    memory = settings.launch.gpus * settings.launch.gpu_memory_gb * GB
    held = reading(model, "export", memory)
    lines.append(f"the export holds about {_size(held.main)} in main memory and {_size(held.gpus)} on GPUs")
    if targets.TARGETS[export.target].gpu:
        gpus = serving.tensor * serving.pipeline
        each_gpu = weight_bytes(model, export.weights) / gpus
        lines.append(
            f"serving takes {gpus} {export.gpu or 'GPU'}{'s' if gpus > 1 and not export.gpu else ''}, each with about "
            f"{_size(each_gpu)} of weights"
        )
    lines += [f"not executed: {each}" for each in done.not_executed]
    return "\n".join(lines)


def _size(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


if __name__ == "__main__":
    print(strict_json.dumps(config_faults(Path(sys.argv[1]))))
