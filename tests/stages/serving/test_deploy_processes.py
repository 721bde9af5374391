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
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import places, schema
from pipeline.record.trace import served_models
from pipeline.serving import processes, server, service
from pipeline.serving.client import generate_stream
from pipeline.serving.processes import Mark
from pipeline.stages.deploy import ports, triton
from pipeline.stages.step import InputError
from tests.miniature import IDENTITY, port_settings
from tests.stages.serving.deployment import Deployment

QUESTION = "What does `socket.bind` do?"


@pytest.fixture
def deployment(exported: Path, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(exported, tmp_path)
    yield made
    made.stop()


def answers(found: service.Service) -> bool:
    text = generate_stream(found.gateway.address, found.version.model_name, text=QUESTION, max_tokens=4)
    return bool("".join(text))


def test_stop_leaves_nothing_and_a_redeploy_replaces(
    deployment: Deployment, deployed: service.Service
) -> None:
    assert deployment.run()[0] == 0  # while `deployed` runs: two services side by side
    first = deployment.record()
    status, told = deployment.run()
    assert (status, f"stopped the Triton of the version before (process {first.version.pid})" in told) == (
        0,
        True,
    )
    second = deployment.record()
    assert not server.is_running(first.version)
    assert second.gateway == first.gateway  # clients keep their address and their connections
    assert service.keeper_runs(second)
    assert answers(second)
    started = time.monotonic()
    said = "\n".join(service.stop(second))
    assert "stopped the gateway" in said
    assert f"stopped the gateway at {second.gateway.url}" in said
    assert "stopped the Triton behind it" in said
    assert second.version.address not in said  # nobody deployed that one
    assert time.monotonic() - started < 10
    assert not processes.of_session(second.version.pid)
    assert not service.gateway_runs(second.gateway)
    assert not service.keeper_runs(second)
    assert not Path(second.gateway.control).parent.exists()
    assert not list(Path("/dev/shm").glob(f"{second.version.shm_prefix}*"))
    assert "already gone" in "\n".join(service.stop(second))
    assert answers(deployed)  # the other one was left alone


def test_a_server_stands_on_an_odd_machine(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cases path-with-space, long-tmpdir, ipv6-host, proxy-and-loopback and odd-machine at once."""
    odd = tmp_path / """it's a (copy) of "$HOME" `x`; né\tand so on"""
    temporary = odd / ("as schedulers give them/" * 5)
    temporary.mkdir(parents=True)
    for name, value in {
        "TMPDIR": str(temporary), "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none/cache", "LC_ALL": "C",
        "http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9", "grpc_proxy": "http://127.0.0.1:9",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY", "USER", "LOGNAME"):
        monkeypatch.delenv(name, raising=False)
    deployment = Deployment(Path(shutil.copytree(exported, odd / "export")), odd)
    try:
        status, told = deployment.run(host="::1")
        assert status == 0, told
        found = deployment.record()
        address = f"[::1]:{deployment.settings['http_port']}"
        assert found.gateway.address == address
        assert answers(found)
        assert not service.fault(found)
        assert [each["model"] for each in served_models(address)] == [found.version.model_name]
        curl = next(line for line in told.splitlines() if "try: curl" in line).partition("try: ")[2]
        said = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
        assert said.stdout.rstrip().endswith("data: [DONE]")
        # Triton again, at another path of the same kind, as the keeper starts it.
        os.kill(found.version.pid, signal.SIGKILL)
        deadline = time.monotonic() + 60
        while deployment.record().restarts == 0 and time.monotonic() < deadline:
            time.sleep(0.2)
        assert deployment.record().restarts == 1
    finally:
        deployment.stop()
    assert not Path(found.gateway.control).parent.exists()
    ours = [
        path for path in places.private().iterdir() if path.is_symlink() and odd in path.readlink().parents
    ]
    assert [path.resolve() for path in ours] == [temporary]  # what outlives a server: the way to the TMPDIR
    places.forget(temporary)


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
    assert answers(running)


def test_what_was_killed_is_seen_and_replaced(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    first = deployment.record()
    assert first.keeper is not None
    os.kill(first.keeper.pid, signal.SIGKILL)
    while service.keeper_runs(first):
        time.sleep(0.05)
    assert "the gateway starts another" in service.status_text(first)
    os.kill(first.gateway.process.pid, signal.SIGKILL)
    while service.gateway_runs(first.gateway):
        time.sleep(0.05)
    assert "nobody would start it anew" in service.status_text(first)
    os.kill(first.version.pid, signal.SIGKILL)
    while server.is_running(first.version):
        time.sleep(0.05)
    assert "is gone" in service.status_text(first)
    status, told = deployment.run()
    assert status == 0, told
    assert "gone" in told
    second = deployment.record()
    assert answers(second)
    assert service.keeper_runs(second)
    os.kill(second.gateway.process.pid, signal.SIGKILL)
    assert deployment.run()[0] == 0
    assert answers(deployment.record())


def until(said: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def keepers(deployment: Deployment) -> list[int]:
    """All keepers of a deployment that are alive."""
    return [
        process.pid
        for process in processes.everything()
        if service.KEEPER in process.command and str(deployment.path) in process.command
    ]


def test_a_gateway_that_stops_is_mended_and_a_keeper_is_kept_by_it(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    first = deployment.record()
    assert first.keeper is not None
    for number in (signal.SIGSTOP, signal.SIGKILL):
        kept = deployment.record().keeper
        assert kept is not None
        os.kill(kept.pid, number)

        def another(kept: Mark = kept) -> bool:
            now = deployment.record()
            return now.keeper not in (None, kept) and service.keeper_runs(now)

        until(another, 30)
        assert keepers(deployment) == [deployment.record().keeper.pid]  # type: ignore[union-attr]
    os.kill(first.gateway.process.pid, signal.SIGSTOP)
    until(lambda: deployment.record().gateway != first.gateway, 90)
    assert not service.gateway_runs(first.gateway)
    until(lambda: not service.fault(deployment.record()), 30)
    second = deployment.record()
    assert second.version == first.version  # Triton was left alone
    assert answers(second)
    assert service.keeper_runs(second)
    # A stopped gateway and keeper hear of the end all the same, and nothing is left.
    assert second.keeper is not None
    os.kill(second.keeper.pid, signal.SIGSTOP)
    os.kill(second.gateway.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    service.stop(second)
    assert time.monotonic() - began < 20
    assert keepers(deployment) == []
    assert not service.gateway_runs(second.gateway)


def test_what_an_interrupted_start_left_is_stopped(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    stray = deployment.record()
    deployment.path.unlink()  # as if the start had been killed before it wrote the record
    status, told = deployment.run()
    assert status == 0, told
    assert f"stopped a server that an interrupted start had left (process {stray.version.pid})" in told
    assert f"(process {stray.gateway.process.pid}, pipeline.gateway)" in told
    assert not server.is_running(stray.version)
    assert not service.gateway_runs(stray.gateway)
    assert not service.keeper_runs(stray)
    assert answers(deployment.record())


def test_the_server_says_what_it_serves(deployed: service.Service) -> None:
    (served,) = served_models(deployed.gateway.address)
    name = deployed.version.model_name
    assert served == {"model": name, "identity": IDENTITY, "server": f"lifecycle-{IDENTITY}"}


def test_a_stale_record_harms_nobody(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    found = deployment.record()
    deployment.stop()
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        mark = Mark.of(bystander.pid)
        version = dataclasses.replace(found.version, pid=mark.pid, start_time=mark.start_time)
        gateway = dataclasses.replace(found.gateway, process=mark)
        stale = dataclasses.replace(found, version=version, gateway=gateway, keeper=mark)
        service.write(deployment.path, stale)
        # The processes are there, and are something else.
        assert not server.is_running(version)
        assert not service.gateway_runs(gateway)
        assert not service.keeper_runs(stale)
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


def test_a_record_that_is_none_is_read_as_none(tmp_path: Path, deployed: service.Service) -> None:
    path = tmp_path / "server.json"
    assert service.read(path) is None
    for text in ('{"pid": 1', "[]", '{"pid": 1}'):  # torn; something else; an earlier release's
        path.write_text(text)
        assert service.read(path) is None
    service.write(path, deployed)
    assert service.read(path) == deployed


def test_bytecode_of_a_served_package_stays_out_of_what_was_published(tmp_path: Path) -> None:
    published = tmp_path / "repository"
    package = published / "assistant" / "1" / "conversations"
    package.mkdir(parents=True)
    (published / "assistant" / "config.pbtxt").write_text("")
    for name in ("__init__.py", "marks.py"):
        (package / name).write_text("")
    (package.parent / "model.py").write_text("import conversations.marks\n")
    linked = triton.link_repository(published, tmp_path / "linked")
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    subprocess.run(
        [sys.executable, "-c", "import model"], cwd=linked / "assistant" / "1", env=environment, check=True
    )
    assert list(linked.rglob("__pycache__"))
    assert not list(published.rglob("__pycache__"))
