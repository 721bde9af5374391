"""The servers that the client suite is run against.

By default one for each target, all the real Triton: the CPU target, and the repositories that export writes for
TensorRT-LLM and for vLLM with stand-ins (``standin/``) for the ``tensorrt_llm`` package and the two backends; and the
gateway in front of the CPU target.  Any other one::

    CONTRACT_ADDRESS=host:8000 CONTRACT_GRPC=host:8001 CONTRACT_MODEL=assistant CONTRACT_BUNDLE=bundle/ \\
        python -m pytest tests/contract
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipeline.serving import engines, service
from pipeline.stages.export import engine_checkpoint
from tests.miniature import make_inputs, port_settings, run_stage

STANDIN = Path(__file__).parent / "standin"


@dataclass(frozen=True)
class Served:
    """A server to ask, and the Hugging Face folder of what it serves."""

    target: str
    address: str
    grpc: str
    model_name: str
    bundle: Path


def given() -> Served | None:
    """The server that the environment names."""
    if "CONTRACT_ADDRESS" not in os.environ:
        return None
    names = ("ADDRESS", "GRPC", "MODEL", "BUNDLE")
    address, grpc, model, bundle = (os.environ[f"CONTRACT_{name}"] for name in names)
    return Served("given", address, grpc, model, Path(bundle))


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def deploy(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Served]]:
    """Export for a target and deploy, once each; all is stopped at the end.

    ``gateway`` is the gateway of the CPU target; the others are their Triton itself.
    """
    records: dict[str, tuple[service.Service, Path]] = {}

    def start(asked: str) -> Served:
        target = "cpu-openvino" if asked == "gateway" else asked
        if target not in records:
            records[target] = make(target)
        found, bundle = records[target]
        name = found.version.model_name
        if asked == "gateway":
            grpc = f"127.0.0.1:{found.gateway.grpc_port}"
            return Served(asked, found.gateway.address, grpc, name, bundle)
        return Served(asked, found.version.address, f"127.0.0.1:{found.version.grpc_port}", name, bundle)

    def make(target: str) -> tuple[service.Service, Path]:
        folder = tmp_path_factory.mktemp(target)
        # The target's own bf16 rounding is measured by the export, and not this suite's concern.
        settings = {"target": target, "tolerance": {"different": 1.0, "top1_agreement": 0.5, "kl": 1.0}}
        status, told = run_stage("export", folder / "export", inputs, settings)
        assert status == 0, told
        output = folder / "export" / "output"
        bundle = output / "bundle"
        if target == "trtllm":
            version = output / "repository" / "assistant" / "1"
            shutil.copytree(STANDIN / "tensorrt_llm", version / "tensorrt_llm")
            shutil.copytree(Path(engines.__file__).parent, version / "tensorrt_llm" / "engines")
            bundle = version / "checkpoint"
        elif target == "vllm":
            model = output / "repository" / "assistant-vllm"
            stand_in(model, "vllm", Path(engines.__file__).parent)
            bundle = model / "1" / "checkpoint"
        elif target == "trtllm-engine":
            model = output / "repository" / "assistant-engine"
            stand_in(model, "trtllm_engine", Path(engine_checkpoint.__file__))
            bundle = rounded(bundle, folder / "bf16")
        path = folder / "server.json"
        status, told = run_stage(
            "deploy", folder / "work", {"export": output}, port_settings(), {"server_record": str(path)}
        )
        assert status == 0, told
        record = service.read(path)
        assert record is not None
        return record, bundle

    yield start
    for record, _ in records.values():
        service.stop(record)


def rounded(bundle: Path, folder: Path) -> Path:
    """The bundle with bf16 weights, as the engines' checkpoint has them."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(bundle, folder)
    AutoModelForCausalLM.from_pretrained(bundle, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def stand_in(model: Path, name: str, needed: Path) -> None:
    """Put a model of the python backend in the place of one that only a GPU's container has."""
    config = model / "config.pbtxt"
    text = re.sub(r'backend: "\w+"', 'backend: "python"', config.read_text())
    # Batches of several requests are the backend's own business, and not the contract's.
    text = text.replace("KIND_MODEL", "KIND_CPU").replace(
        "dynamic_batching { max_queue_delay_microseconds: 0 }", ""
    )
    config.write_text(text)
    shutil.copyfile(STANDIN / name / "model.py", model / "1" / "model.py")
    copy = shutil.copytree if needed.is_dir() else shutil.copyfile
    copy(needed, model / "1" / needed.name)


@pytest.fixture(
    scope="session",
    params=["given"] if given() else ["gateway", "cpu-openvino", "trtllm", "trtllm-engine", "vllm"],
)
def deployed(request: pytest.FixtureRequest, deploy: Callable[..., Served]) -> Served:
    return given() or deploy(request.param)
