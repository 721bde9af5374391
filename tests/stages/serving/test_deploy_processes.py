"""Starting, replacing and stopping real servers: taken ports, dead servers, stale records."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import schema
from pipeline.record.trace import served_models
from pipeline.serving import processes, server
from pipeline.stages.deploy import ports
from pipeline.stages.step import InputError
from tests.miniature import IDENTITY, port_settings, run_stage


class Deployment:
    """Deploys one export again and again, on the same ports and record."""

    def __init__(self, exported: Path, folder: Path) -> None:
        self.exported, self.folder, self.runs = exported, folder, 0
        self.path = folder / "server.json"
        self.settings = port_settings()

    def run(self, **settings: Any) -> tuple[int, str]:
        self.runs += 1
        return run_stage(
            "deploy",
            self.folder / f"work{self.runs}",
            {"export": self.exported},
            {**self.settings, **settings},
            {"server_record": str(self.path)},
        )

    def record(self) -> server.ServerRecord:
        record = server.read(self.path)
        assert record is not None
        return record


@pytest.fixture
def deployment(exported: Path, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(exported, tmp_path)
    yield made
    record = server.read(made.path)
    if record:
        server.stop(record)


def test_stop_leaves_nothing_and_a_redeploy_replaces(
    deployment: Deployment, deployed: server.ServerRecord
) -> None:
    assert deployment.run()[0] == 0  # while `deployed` runs: two servers side by side
    first = deployment.record()
    status, told = deployment.run()
    assert (status, f"stopped the server at {first.address}" in told) == (0, True)
    second = deployment.record()
    assert not server.is_running(first)
    assert server.probe(second, 10).ok
    started = time.monotonic()
    assert "stopped the server" in server.stop(second)
    assert time.monotonic() - started < 8
    assert not processes.of_session(second.pid)
    assert not list(Path("/dev/shm").glob(f"{second.shm_prefix}*"))
    assert "already gone" in server.stop(second)
    assert server.probe(deployed, 10).ok  # the other one was left alone


@pytest.mark.parametrize("needs", ["tensorrt_llm package", "vllm backend"])
def test_what_only_gpus_can_serve_is_refused_and_the_running_server_kept(
    needs: str, deployment: Deployment, tmp_path: Path
) -> None:
    assert deployment.run()[0] == 0
    export = shutil.copytree(deployment.exported, tmp_path / "export")
    model = export / "repository" / "assistant"
    target = "vllm" if "vllm" in needs else "trtllm"
    if target == "vllm":
        config = model / "config.pbtxt"
        config.write_text(config.read_text().replace('backend: "python"', 'backend: "vllm"'))
    else:
        (model / "1" / "model.yaml").write_text("model: checkpoint\n")
    made = json.loads((export / "export.json").read_text())
    (export / "export.json").write_text(json.dumps({**made, "target": target}))
    running, deployment.exported = deployment.record(), export
    status, told = deployment.run()
    assert status == 2
    assert f"the export is for {target}, and this machine's Triton has no {needs}" in told
    assert f"26.07-{target}-python-py3" in told
    assert server.probe(running, 10).ok


def test_a_killed_server_is_replaced(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    first = deployment.record()
    os.kill(first.pid, signal.SIGKILL)
    while server.is_running(first):
        time.sleep(0.05)
    assert "is gone" in server.status_text(first)
    status, told = deployment.run()
    assert status == 0, told
    assert "gone" in told
    assert server.probe(deployment.record(), 10).ok


def test_a_server_that_an_interrupted_start_left_is_replaced(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    stray = deployment.record()
    deployment.path.unlink()  # as if the start had been killed before it wrote the record
    status, told = deployment.run()
    assert status == 0, told
    assert f"stopped a server that an interrupted start had left (process {stray.pid})" in told
    assert not server.is_running(stray)
    assert server.probe(deployment.record(), 10).ok


def test_the_server_says_what_it_serves(deployed: server.ServerRecord) -> None:
    (served,) = served_models(deployed.address)
    assert served == {
        "model": deployed.model_name,
        "identity": IDENTITY,
        "server": f"lifecycle-{IDENTITY}",
    }


def test_a_dead_model_process_is_seen_by_the_probe(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    record = deployment.record()
    stub = next(p for p in processes.of_session(record.pid) if server.STUB in p.command[0])
    os.kill(stub.pid, signal.SIGKILL)
    assert server.is_running(record)
    assert not server.probe(record, 5).ok


def test_a_stale_record_harms_nobody(deployment: Deployment) -> None:
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        found = processes.find(bystander.pid)
        assert found is not None
        stale = server.ServerRecord(
            bystander.pid,
            found.start_time,
            processes.boot_id(),
            "127.0.0.1",
            1,
            2,
            3,
            "m",
            "i",
            "r",
            "l",
            "none_",
        )
        server.write(deployment.path, stale)
        assert not server.is_running(stale)  # the process is there and is no tritonserver
        status, told = deployment.run()
        assert status == 0, told
        assert "already gone" in told
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_taken_port_names_its_holder_and_the_setting(deployment: Deployment) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        status, told = deployment.run(grpc_port=port)
    assert status == 2
    assert f"port {port} is taken by process {os.getpid()}" in told
    assert "deploy.grpc_port" in told
    assert not deployment.path.exists()


def test_a_port_of_a_server_just_stopped_is_waited_for() -> None:
    with socket.socket() as closing:
        closing.bind(("127.0.0.1", 0))
        closing.listen()
        settings = schema.Deploy(**{**port_settings(), "http_port": closing.getsockname()[1]})
        with pytest.raises(InputError, match="is taken"):
            ports.check_free(settings)
        threading.Timer(0.5, closing.close).start()
        ports.check_free(settings, just_stopped=True)


def test_one_port_for_two_endpoints_is_refused(deployment: Deployment) -> None:
    status, told = deployment.run(grpc_port=deployment.settings["http_port"])
    assert (status, "deploy.http_port and deploy.grpc_port are both" in told) == (2, True)


def test_a_server_that_cannot_load_its_model_shows_its_log(deployment: Deployment, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(deployment.exported), str(broken)], check=True)
    (broken / "repository/assistant/1/openvino/openvino_model.xml").write_text("no model")
    deployment.exported = broken
    status, told = deployment.run(start_timeout_s=15)
    assert status == 1
    assert "Triton ended with status" in told
    assert "openvino_model.xml" in told or "Unable to read" in told
    assert not deployment.path.exists()


def test_nothing_is_written_into_the_export(deployment: Deployment) -> None:
    before = {p: p.stat().st_mtime_ns for p in deployment.exported.rglob("*")}
    assert deployment.run()[0] == 0
    assert {p: p.stat().st_mtime_ns for p in deployment.exported.rglob("*")} == before
    assert stat.S_ISREG(deployment.path.stat().st_mode)


def test_a_record_that_is_none_is_read_as_none(tmp_path: Path, deployed: server.ServerRecord) -> None:
    path = tmp_path / "server.json"
    assert server.read(path) is None
    path.write_text('{"pid": 1')
    assert server.read(path) is None
    server.write(path, dataclasses.replace(deployed, pid=1))
    assert not server.is_running(server.read(path) or deployed)
