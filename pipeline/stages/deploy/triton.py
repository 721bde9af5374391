"""Start the ``tritonserver`` of the nvidia-pytriton wheel and wait for its first answer.

Run without a GPU and without PyTriton's own Python side: the binary serves a model
repository with its bundled python backend, whose stub is made for one Python version and
needs that interpreter's shared library.
https://github.com/triton-inference-server/server/blob/main/docs/user_guide/
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from pipeline import places
from pipeline.serving import processes
from pipeline.serving.server import ServerRecord, probe
from pipeline.surroundings import settled
from pipeline.threads import thread_environment

EXIT_TIMEOUT_S = 3  # how long a stopping server waits for answers under way
ERROR_LINE = re.compile(r"E\d{4} ")  # Triton's log: severity, month and day
BACKEND = re.compile(r'^backend: "(\w+)"', re.MULTILINE)
LOG_LINES = 15  # shown when the server does not start
PROBE_TIMEOUT_S = 10.0


class StartFailed(RuntimeError):
    """The server ended or did not answer in time."""


def start(
    *,
    ports: tuple[int, int, int],
    repository: Path,
    model_name: str,
    identity: str,
    folder: Path,
    threads: int,
) -> tuple[subprocess.Popen[bytes], ServerRecord]:
    """Start a server on loopback, in a session of its own.

    ``ports`` are those of HTTP, gRPC and metrics; ``folder`` takes the log and the backend links.
    """
    wheel = installation()
    folder.mkdir(parents=True, exist_ok=True)
    link_backend(wheel, folder / "backends")
    link_repository(repository.resolve(), folder / "repository")
    # The backend starts its models' processes by `bash -c`, and quotes no path.
    plain = places.short(folder.resolve())
    log = folder / "tritonserver.log"
    # Servers of different recipes must not meet in each other's shared memory.
    prefix = f"lifecycle_{secrets.token_hex(4)}_"
    host, (http, grpc, metrics) = "127.0.0.1", ports
    # Nobody needs these; without the key of this start they are refused.  (Who may read this machine's processes can
    # find it; they can speak to Triton's port as well.)
    closed = f"model-repository,shared-memory,trace,logging:lifecycle={secrets.token_hex(16)}"
    command = [
        str(wheel / "bin" / "tritonserver"),
        # Shown as the server's name in its metadata (/v2), so that an address can be traced.
        f"--id=lifecycle-{identity}",
        f"--model-repository={plain / 'repository'}",
        f"--backend-directory={plain / 'backends'}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--http-address={host}",
        f"--http-port={http}",
        f"--http-restricted-api={closed}",
        f"--grpc-address={host}",
        f"--grpc-port={grpc}",
        f"--grpc-restricted-protocol={closed}",
        f"--metrics-address={host}",
        f"--metrics-port={metrics}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
        "--disable-auto-complete-config",
        "--allow-gpu-metrics=false",
    ]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # The port is for a model that asks another one.
            env={**environment(threads, folder.resolve()), "TRITON_PORT": str(http)},
            start_new_session=True,
        )
    started = processes.find(process.pid)
    assert started is not None  # our own child: a zombie at worst
    record = ServerRecord(
        pid=process.pid,
        start_time=started.start_time,
        boot=processes.boot_id(),
        host=host,
        http_port=http,
        grpc_port=grpc,
        metrics_port=metrics,
        model_name=model_name,
        export_identity=identity,
        repository=str(repository.resolve()),
        log=str(log),
        shm_prefix=prefix,
    )
    return process, record


def wait_until_answering(
    process: subprocess.Popen[bytes],
    record: ServerRecord,
    timeout_s: int,
    waiting: Callable[[float], None] = lambda waited: None,
) -> float:
    """Wait for a real streamed generation; returns the seconds that the first one took.

    Raises :class:`StartFailed` with the end of the log when the server ends or
    ``timeout_s`` passes; ``waiting`` hears now and then for how many seconds it has been.
    """
    begun = time.monotonic()
    while True:
        waited = time.monotonic() - begun
        status = process.poll()
        if status is not None:
            raise StartFailed(f"Triton ended with status {status} while starting{log_end(record.log)}")
        answer = probe(record, min(PROBE_TIMEOUT_S, max(1.0, timeout_s - waited)))
        if answer.ok:
            return answer.seconds
        if waited > timeout_s:
            raise StartFailed(
                f"Triton did not answer within {timeout_s} s (deploy.start_timeout_s): "
                f"{answer.reason}{log_end(record.log)}"
            )
        waiting(waited)
        time.sleep(0.2)


def installation() -> Path:
    """The folder of the Triton that the nvidia-pytriton wheel brings."""
    spec = find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("nvidia-pytriton is not installed here; `make env-serving` installs it")
    return Path(spec.submodule_search_locations[0]) / "tritonserver"


def lacking(repository: Path) -> str | None:
    """The backend or package that a repository's models need and this machine's Triton does not have."""
    for config in sorted(repository.glob("*/config.pbtxt")):
        found = BACKEND.search(config.read_text(encoding="utf-8"))
        if found and not (installation() / "backends" / found[1]).is_dir():
            return f"{found[1]} backend"
        version = config.parent / "1"
        # TensorRT-LLM's LLM API is a Python package; the model may bring it along.
        needs = (version / "model.yaml").is_file() and not (version / "tensorrt_llm").is_dir()
        if needs and find_spec("tensorrt_llm") is None:
            return "tensorrt_llm package"
    return None


def link_backend(wheel: Path, folder: Path) -> Path:
    """A backend folder with links to the wheel's python backend and this Python's stub."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        raise RuntimeError(f"nvidia-pytriton has no python backend for Python {version}")
    shutil.rmtree(folder, ignore_errors=True)
    target = folder / "python"
    target.mkdir(parents=True)
    for file in sorted((wheel / "backends" / "python").iterdir()):
        if file.is_file():
            (target / file.name).symlink_to(file)
    (target / stub.name).symlink_to(stub)
    return folder


def link_repository(repository: Path, folder: Path) -> Path:
    """A model repository of links into a published one.

    The backend's embedded interpreter ignores Python's environment variables and leaves
    bytecode beside ``model.py``; a published artifact must stay as it is.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for version in sorted(path for path in repository.glob("*/*") if path.is_dir()):
        target = folder / version.parent.name / version.name
        _link_into(version, target)
        (target.parent / "config.pbtxt").symlink_to(version.parent / "config.pbtxt")
    return folder


def _link_into(source: Path, target: Path) -> None:
    """A folder of links to what is in ``source``; packages of Python, which bytecode is left in as well, likewise."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if (file / "__init__.py").exists():
            _link_into(file, target / file.name)
        else:
            (target / file.name).symlink_to(file)


def environment(threads: int, folder: Path) -> dict[str, str]:
    """The server's environment: this interpreter first, its shared library within reach."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "MALLOC_"))}
    libraries = [str(sysconfig.get_config_var("LIBDIR")), kept.get("LD_LIBRARY_PATH", "")]
    return {
        **settled(kept, folder),
        "PATH": f"{Path(sys.executable).parent}:{kept.get('PATH', '/usr/bin:/bin')}",
        "LD_LIBRARY_PATH": ":".join(part for part in libraries if part),
        "LIFECYCLE_THREADS": str(threads),
        **thread_environment(threads),
    }


def log_end(log: str) -> str:
    """The telling lines of the server's log, to be appended to a message.

    Those from its first error on; after an error Triton prints tables and its farewell,
    so that the very last lines say little.  Without one, the last lines.
    """
    lines = Path(log).read_text(encoding="utf-8", errors="replace").splitlines()
    first = next((n for n, line in enumerate(lines) if ERROR_LINE.match(line)), None)
    part = lines[-LOG_LINES:] if first is None else lines[first : first + LOG_LINES]
    return f"; from {log}:\n" + "\n".join(f"  {line}" for line in part)
