"""Versions that replace each other, and what dies: under load, with real servers, no request may be lost or hang."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import schema
from pipeline.schema.delivery import Limits
from pipeline.serving import control, processes, server, service
from pipeline.serving.client import ServingError, events
from pipeline.stages import deploy
from pipeline.stages.deploy import probes, versions
from tests.stages.serving.deployment import Deployment

CLIENTS = 6
TOKENS = 60
SWAPS = 3
ENDS_WITHIN_S = 25.0  # a request that runs into a dead model hears of it


class Load:
    """Clients that stream answers one after the other until they are told to stop."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.whole = 0
        self.failures: list[str] = []
        self.slowest = 0.0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CLIENTS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in self._threads)

    def _ask(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                got = list(
                    events(
                        self.address,
                        "assistant",
                        text=f"What does `socket.x{number}{count}` do?",
                        max_tokens=TOKENS,
                        ignore_end=True,
                        temperature=0.0,
                    )
                )
            except ServingError as error:
                self.failures.append(str(error))
                time.sleep(0.2)
            else:
                last = got[-1]
                if (last["finish_reason"], last["completion_tokens"]) == ("length", TOKENS):
                    self.whole += 1
                else:
                    self.failures.append(f"truncated: {last}")
            self.slowest = max(self.slowest, time.monotonic() - began)
            count += 1


def another(export: Path, folder: Path, letter: str) -> Path:
    """The same export by another identity."""
    shutil.copytree(export, folder)
    made = json.loads((folder / "export.json").read_text())
    (folder / "export.json").write_text(json.dumps({**made, "identity": letter * 64}))
    return folder


@pytest.fixture
def deployment(exported: Path, tmp_path: Path) -> Iterator[Deployment]:
    made = Deployment(exported, tmp_path)
    yield made
    made.stop()


def test_versions_swap_under_load_and_no_answer_is_lost(
    deployment: Deployment, exported: Path, tmp_path: Path
) -> None:
    exports = [another(exported, tmp_path / letter, letter) for letter in "ab"]
    deployment.exported = exports[0]
    assert deployment.run()[0] == 0
    asked = Counter[str]()
    with Load(deployment.record().gateway.address) as load:
        for number in range(1, SWAPS + 1):
            deployment.exported = exports[number % 2]
            status, told = deployment.run()
            assert status == 0, told
            found = deployment.record()
            assert found.identity == "ab"[number % 2] * 64
            assert "were ended" not in told  # everything under way came to its end
            before = load.whole
            while load.whole < before + CLIENTS:
                time.sleep(0.05)
            asked[found.identity] += load.whole - before
    assert load.failures == []
    assert load.whole > CLIENTS * SWAPS
    assert len(asked) == 2
    assert len(deployment.record().previous) == 1


def test_a_version_that_fails_its_probe_gets_no_traffic(
    deployment: Deployment, exported: Path, tmp_path: Path
) -> None:
    assert deployment.run()[0] == 0
    good = deployment.record()
    wrong = another(exported, tmp_path / "wrong", "c")
    probes = json.loads((wrong / "probes.json").read_text())
    for each in probes["answers"]:
        each["text"] = "something that this model does not say"
    (wrong / "probes.json").write_text(json.dumps(probes))
    broken = another(exported, tmp_path / "broken", "d")
    (broken / "repository/assistant/1/openvino/openvino_model.xml").write_text("no model")
    with Load(good.gateway.address) as load:
        for export, said in (
            (wrong, "the new version gets no traffic"),
            (broken, "Triton ended with status"),
        ):
            deployment.exported = export
            status, told = deployment.run(start_timeout_s=20)
            assert status == 1
            assert said in told
            found = deployment.record()
            assert service.keeper_runs(found)
            assert dataclasses.replace(found, keeper=good.keeper) == good
    assert load.failures == []
    assert load.whole
    folder = (service.folder_of(deployment.path) / "versions").resolve()
    option = "--model-repository="
    running = [
        p
        for p in processes.everything()
        for word in p.command  # a server knows its folder by a short link to it
        if word.startswith(option) and Path(word.removeprefix(option)).resolve().is_relative_to(folder)
    ]
    assert [process.pid for process in running] == [good.version.pid]


@pytest.mark.parametrize("victim", ["model process", "server"])
def test_what_dies_is_started_anew_and_no_request_hangs(deployment: Deployment, victim: str) -> None:
    assert deployment.run()[0] == 0
    first = deployment.record()
    pid = first.version.pid
    if victim == "model process":
        pid = next(p.pid for p in processes.of_session(pid) if server.STUB in p.command[0])
    with Load(first.gateway.address) as load:
        while load.whole < CLIENTS:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        while deployment.record().restarts == 0:
            assert time.monotonic() - killed < 60
            time.sleep(0.1)
        back = load.whole
        while load.whole < back + CLIENTS:
            assert time.monotonic() - killed < 90
            time.sleep(0.05)
    # Those under way, and those that came while nobody answered, were told so.
    assert load.failures
    assert all(
        "stopped answering" in f
        or "does not answer" in f
        or "broke off" in f
        or "ended in the middle" in f
        or "has died" in f
        for f in load.failures
    ), Counter(load.failures)
    assert load.slowest < ENDS_WITHIN_S
    second = deployment.record()
    assert second.version.pid != first.version.pid
    assert not processes.of_session(first.version.pid)
    assert "started the model anew 1 times" in service.status_text(second)


def test_a_dead_gateway_is_started_anew(deployment: Deployment) -> None:
    assert deployment.run()[0] == 0
    first = deployment.record()
    os.kill(first.gateway.process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 40
    while deployment.record().gateway == first.gateway:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = deployment.record()
    while control.state(second.gateway.control)["ready"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert second.version == first.version
    assert list(events(second.gateway.address, "assistant", text="What?", max_tokens=4))


# ------------------------------------------------------------------- what it decides by


def test_a_changed_setting_of_the_gateway_is_seen(deployed: service.Service) -> None:
    found = json.loads(Path(deployed.gateway.settings).read_text())
    ports = {name: found[name] for name in ("http_port", "grpc_port", "metrics_port")}
    same = schema.Deploy(**ports)
    assert service.changed(deployed.gateway, same) == []
    for change, named in (
        ({"keys_file": "keys"}, "deploy.keys_file"),
        ({"tls_certificate": "c.pem", "tls_key": "k.pem"}, "deploy.tls_certificate"),
        ({"limits": Limits(max_requests=1)}, "deploy.limits"),
        ({"probe_timeout_s": 3.0}, "deploy.probe_timeout_s"),
    ):
        assert named in service.changed(deployed.gateway, dataclasses.replace(same, **change))


def test_going_back_goes_further_back_each_time(deployed: service.Service, tmp_path: Path) -> None:
    def export(letter: str) -> versions.Export:
        return versions.Export(tmp_path / letter, letter * 64, "assistant", "cpu-openvino", {})

    def serving(letter: str, previous: list[service.Earlier]) -> service.Service:
        version = dataclasses.replace(deployed.version, export_identity=letter * 64)
        return dataclasses.replace(
            deployed, version=version, export=str(tmp_path / letter), previous=previous
        )

    before = deploy._previous(serving("a", []), export("b"))
    before = deploy._previous(serving("b", before), export("c"))
    assert [each.identity[0] for each in before] == ["b", "a"]
    before = deploy._previous(serving("c", before), export("b"))
    assert [each.identity[0] for each in before] == ["a"]
    before = deploy._previous(serving("b", before), export("a"))
    assert before == []
    assert deploy._previous(serving("a", []), export("a")) == []  # the same again


def test_the_files_of_the_version_that_runs_stay(deployed: service.Service, tmp_path: Path) -> None:
    running = dataclasses.replace(deployed.version, log=str(tmp_path / "running" / "tritonserver.log"))
    for age, name in enumerate(["running", "f1", "f2", "f3", "f4"]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (age, age))
    versions._tidy(tmp_path, running)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f2", "f3", "f4", "running"]


def test_an_empty_answer_and_two_others_of_a_model_keep_a_version_out(
    deployed: service.Service, exported: Path, tmp_path: Path
) -> None:
    plain = json.loads((exported / "probes.json").read_text())
    assert probes.check(deployed.version, exported, 16) == (16, [])
    for wrong, faults in ((1, 0), (2, 1)):
        answers = [
            {**each, "text": "?"} if place < wrong else each for place, each in enumerate(plain["answers"])
        ]
        (tmp_path / "probes.json").write_text(json.dumps({**plain, "answers": answers}))
        assert len(probes.check(deployed.version, tmp_path, 16)[1]) == faults
