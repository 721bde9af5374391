"""triton.sh: what it starts, and that a real Triton takes it and keeps to itself."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.toolchains import Toolchain
from tests.deploy.conftest import CHART, DEBIAN, IDENTITY

SCRIPT = CHART / "files" / "triton.sh"
SHELLS = ("/bin/bash", "/bin/sh")
TELL = """#!/bin/bash
printf '%s\\n' "$(basename "$0")" "$@" >>"$TOLD"
"""


def started(folder: Path, mode: str, **environment: str) -> list[str]:
    """The words of the last program that a mode starts; programs of that name tell them in place of starting."""
    for name in ("tritonserver", "mpirun", "trtllm-llmapi-launch", "ssh"):
        (folder / name).write_text(TELL)
        (folder / name).chmod(0o755)
    told = folder / "told"
    told.unlink(missing_ok=True)
    given = {"PATH": f"{folder}:/usr/bin:/bin", "TOLD": str(told), "IDENTITY": IDENTITY, **environment}
    subprocess.run(["bash", str(SCRIPT), mode], env=given, check=True, timeout=20)
    return told.read_text().splitlines()


def test_triton_is_on_loopback_and_its_controls_are_closed(tmp_path: Path) -> None:
    words = started(tmp_path, "alone")
    assert words[0] == "tritonserver"
    addresses = [word for word in words if "-address=" in word]
    assert addresses == [f"--{each}-address=127.0.0.1" for each in ("http", "grpc", "metrics")]
    assert "--model-control-mode=none" in words
    assert f"--id=lifecycle-{IDENTITY}" in words
    closed = [word.partition("=")[2] for word in words if "restricted" in word]
    assert len(closed) == 2
    assert all(word.startswith("shared-memory,model-repository,trace,logging:lifecycle=") for word in closed)
    again = started(tmp_path, "alone")
    assert set(closed).isdisjoint(word.partition("=")[2] for word in again), "another key at every start"


def test_processes_are_started_as_the_place_wants(tmp_path: Path) -> None:
    alone = [word for word in started(tmp_path, "alone") if "restricted" not in word]
    for mode, before in (("spawn", ["mpirun", "-n", "1"]), ("rank", ["trtllm-llmapi-launch"])):
        words = [word for word in started(tmp_path, mode) if "restricted" not in word]
        assert words == before + alone


def test_a_leader_starts_a_process_for_each_gpu_of_the_group(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "id_ed25519").write_text("private\n")
    (keys / "id_ed25519.pub").write_text("ssh-ed25519 AAAA someone\n")
    words = started(
        tmp_path,
        "leader",
        GPUS="8",
        SSH_PORT="2222",
        SSH_KEYS=str(keys),
        SSH_FOLDER=str(tmp_path / "ssh-files"),
        LWS_LEADER_ADDRESS="assistant-0.assistant.serving",
        LWS_GROUP_SIZE="3",
    )
    start = words.index("mpirun")
    asked = [words[i + 1] for i, word in enumerate(words[:start]) if word == "ConnectTimeout=5"]
    assert asked == ["assistant-0-1.assistant.serving", "assistant-0-2.assistant.serving"]
    hosts = ",".join(f"assistant-0{each}.assistant.serving:8" for each in ("", "-1", "-2"))
    assert words[start + 1 : start + 6] == ["-n", "24", "--host", hosts, "trtllm-llmapi-launch"]
    assert words[start + 6] == "tritonserver"
    assert (tmp_path / "ssh-files" / "known_hosts").read_text() == "* ssh-ed25519 AAAA\n"
    assert (tmp_path / "ssh-files" / "id_ed25519").stat().st_mode & 0o77 == 0


@pytest.fixture
def user() -> pwd.struct_passwd:
    """Who the worker runs as: whoever runs the tests, or for root somebody else, since pods have no root."""
    if os.getuid():
        return pwd.getpwuid(os.getuid())
    others = [each for each in pwd.getpwall() if each.pw_uid and each.pw_shell in SHELLS]
    if not others:
        pytest.skip("this machine has no user with a shell but root")
    return others[0]


@pytest.fixture
def worker(
    tmp_path: Path, user: pwd.struct_passwd
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A real sshd, started by the script as a user without privileges; call it to run something over ssh."""
    keys, files = tmp_path / "keys", tmp_path / "files"
    keys.mkdir()
    for name in ("id_ed25519", "another"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    environment = {
        "PATH": f"{DEBIAN / 'usr' / 'sbin'}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": ":".join(str(found.parent) for found in DEBIAN.glob("**/libwrap.so.0")),
        "SSH_FOLDER": str(files),
        "SSH_KEYS": str(keys),
        "SSH_PORT": port,
        "LWS_WORKER_INDEX": "1",
    }
    tmp_path.chmod(0o777)  # as /tmp of a pod
    words = ["bash", str(SCRIPT), "worker"]
    if os.getuid() == 0:
        # As in the pod.  The folders of pytest are root's own.
        for folder in list(tmp_path.parents)[:2]:
            folder.chmod(0o755)
        for path in (*keys.iterdir(), keys):
            path.chmod(0o755)
        files.mkdir()
        os.chown(files, user.pw_uid, user.pw_gid)
        become = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        words = [*become, "--no-new-privs", *words]
    log = tmp_path / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(words, env=environment, stdout=output, stderr=output)

    def over_ssh(command: str, key: str = "id_ed25519", *options: str) -> subprocess.CompletedProcess[str]:
        known = tmp_path / "known_hosts"
        known.write_text(f"* {(keys / 'id_ed25519.pub').read_text()}")
        private = tmp_path / key
        private.write_bytes((keys / key).read_bytes())
        private.chmod(0o600)
        return subprocess.run(
            ["ssh", "-F", "none", "-p", port, "-i", str(private), "-o", f"UserKnownHostsFile={known}",
             "-o", "StrictHostKeyChecking=yes", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", *options,
             f"{user.pw_name}@127.0.0.1", command],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip

    try:
        deadline = time.monotonic() + 10
        while over_ssh("true").returncode:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, over_ssh("true").stderr + log.read_text()
            time.sleep(0.1)
        yield over_ssh
    finally:
        process.terminate()
        process.wait(10)


def test_a_worker_runs_what_the_leader_sends_in_the_pods_environment(
    worker: Callable[..., subprocess.CompletedProcess[str]], user: pwd.struct_passwd
) -> None:
    done = worker("echo $LWS_WORKER_INDEX $(id -u); exit 7")
    assert (done.stdout, done.returncode) == (f"1 {user.pw_uid}\n", 7)


def test_a_worker_runs_nothing_for_others(worker: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    refused = worker("true", "another")
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr
    forwarded = worker("true", "id_ed25519", "-o", "ExitOnForwardFailure=yes", "-R", "0:127.0.0.1:1")
    assert forwarded.returncode == 255, "what is reachable from the pod is not reachable through it"


def test_an_unknown_mode_is_told() -> None:
    done = subprocess.run(["bash", str(SCRIPT), "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "triton.sh: no such mode: x\n")


def test_it_waits_for_the_gateways_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gateway:
        port = str(gateway.getsockname()[1])
        process = subprocess.Popen(["bash", str(SCRIPT), "after-gateway", "127.0.0.1", port])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.5)
        assert process.poll() is None
    assert process.wait(5) == 0


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real tritonserver of the toolchain `serving`, started by the script, without a model."""
    folder = tmp_path_factory.mktemp("triton")
    installed = Toolchain("serving").site_packages() / "pytriton" / "tritonserver"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")},
        "PATH": f"{installed / 'bin'}:/usr/bin:/bin",
        "IDENTITY": IDENTITY,
        "MODELS": str(folder),
        "TRITON_PORT": str(port),
    }
    log = folder.parent / "triton.log"
    with open(log, "wb") as output:
        process = subprocess.Popen(
            ["bash", str(SCRIPT), "alone"], env=environment, stdout=output, stderr=output
        )
    try:
        address = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 30
        while status(f"{address}/v2/health/ready") != 200:
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


def status(url: str, body: bytes | None = None) -> int:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def test_a_real_triton_takes_every_option_and_tells_the_export(triton: str) -> None:
    with urllib.request.urlopen(f"{triton}/v2", timeout=5) as answer:
        assert json.load(answer)["name"] == f"lifecycle-{IDENTITY}"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v2/repository/index", b"{}"),
        ("/v2/repository/models/any/load", b"{}"),
        ("/v2/repository/models/any/unload", b"{}"),
        ("/v2/systemsharedmemory/status", None),
        ("/v2/cudasharedmemory/status", None),
        ("/v2/trace/setting", None),
        ("/v2/logging", None),
    ],
)
def test_a_real_triton_lets_nobody_control_it(triton: str, path: str, body: bytes | None) -> None:
    assert status(triton + path, body) == 403
