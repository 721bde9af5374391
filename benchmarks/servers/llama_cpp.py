"""llama.cpp's server, built from the source in llama-cpp-python's package: ``make bench-llama-server``.

PyPI has no built one: the package's own server answers one request at a time, the C++ one, whose source lies beside it,
has continuous batching.  A C++ compiler is needed; CMake and Ninja are those of the toolchain ``bench-serving``.
https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from pipeline.errors import LifecycleError
from pipeline.toolchains import Toolchain

PACKAGE = "llama-cpp-python 0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF", "-DGGML_NATIVE=ON", "-DGGML_CCACHE=OFF", "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF", "-DLLAMA_BUILD_APP=OFF", "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_UI=OFF", "-DLLAMA_USE_PREBUILT_UI=OFF",
)  # fmt: skip
CONTEXT = 256  # tokens of one request, as the model's


def program() -> Path:
    """Where the built server lies."""
    return Toolchain("bench-serving").folder.with_name("bench-llama-server") / "llama-server"


def command(model: Path, port: int, threads: int, requests: int) -> list[str]:
    """The command line for so many requests at once; keys and values in fp32, as ours are."""
    return [
        str(program()), "--model", str(model), "--host", "127.0.0.1", "--port", str(port), "--threads", str(threads),
        "--parallel", str(requests), "--ctx-size", str(CONTEXT * requests), "--cache-type-k", "f32", "--cache-type-v", "f32",
        "--no-ui",
    ]  # fmt: skip


def build() -> None:
    """Build the server; does nothing where it is there.  Raises :class:`LifecycleError`."""
    if program().is_file():
        return
    toolchain = Toolchain("bench-serving")
    toolchain.require()
    tools = toolchain.folder / "bin"
    with tempfile.TemporaryDirectory(prefix="llama-server-") as scratch:
        folder = Path(scratch)
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{PACKAGE.replace(' ', '==')} --hash=sha256:{SHA256}\n", encoding="utf-8")
        options = ["--no-deps", "--no-binary", ":all:", "--quiet", "--disable-pip-version-check"]
        _call([str(toolchain.python), "-m", "pip", "download", *options, "-r", str(wanted), "-d", scratch])
        with tarfile.open(next(folder.glob("*.tar.gz"))) as package:
            package.extractall(folder / "source", filter="data")
        source = next(folder.glob("source/*/vendor/llama.cpp"))
        ninja = f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}"
        _call(
            [
                str(tools / "cmake"),
                "-S",
                str(source),
                "-B",
                str(folder / "build"),
                "-G",
                "Ninja",
                ninja,
                *OPTIONS,
            ]
        )
        jobs = ["--parallel", str(os.cpu_count() or 1)]
        _call([str(tools / "cmake"), "--build", str(folder / "build"), "--target", "llama-server", *jobs])
        program().parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / "build" / "bin" / "llama-server", program())


def _call(words: list[str]) -> None:
    done = subprocess.run(words, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise LifecycleError(f"{Path(words[0]).name} ended with {done.returncode}; what it said stands above")


if __name__ == "__main__":
    try:
        build()
    except LifecycleError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
