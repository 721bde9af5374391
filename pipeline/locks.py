"""Writing the locks: what an environment holds, and the SHA-256 of every file that may be installed for it.

    make locks                                       # resolve the .in files anew
    python3.11 -m pipeline.toolchains hash core      # the hashes of the pins as they are

Versions come from pip in a fresh environment, hashes from PyPI's index through uv.  Listed are the wheels for this
Python on Linux, for x86-64 and ARM; of a package that has none its source, under a line of its own
(:mod:`pipeline.toolchains` builds those apart).  ``torch.sha256`` has the official builds of torch that are not on PyPI.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pipeline.errors import LifecycleError
from pipeline.toolchains import BUILDS, CUDA, FROM_SOURCE, Toolchain, call, environment, name_of

UV = "uv==0.13.9"
PYTHON = "3.11.14"  # some packages ask for a patch release of 3.11
HEADER = "# Written by `make locks`; every package that the environment holds, transitive ones included."
WITHOUT_DEPENDENCIES = "# without dependencies"
PLATFORM = re.compile(r"any|manylinux\w*_(x86_64|aarch64)|linux_(x86_64|aarch64)")


def write_lock(toolchain: Toolchain) -> None:
    """Resolve what the ``.in`` file wants in a fresh environment and pin everything it got.

    Packages under the line ``# without dependencies`` are installed as they are: their
    stated requirements would bring what does not work beside the rest.
    """
    wanted = toolchain.lock.with_suffix(".in")
    with tempfile.TemporaryDirectory() as scratch:
        pip = environment(Path(scratch) / "env", toolchain)
        before, _, after = wanted.read_text(encoding="utf-8").partition(WITHOUT_DEPENDENCIES)
        torch = re.search(r"^torch==\S+", before, re.MULTILINE)
        if torch:  # first, so that no later package chooses the build
            call([*pip, torch.group(0)], toolchain)
        for text, options in ((before, []), (after, ["--no-deps"])):
            if text.strip():
                # Beside the others: -r lines are relative.
                part = wanted.parent / f".{toolchain.name}.part.in"
                part.write_text(text, encoding="utf-8")
                try:
                    call([*pip, *options, "-r", str(part)], toolchain)
                finally:
                    part.unlink()
        frozen = subprocess.run(
            [pip[0], "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
        ).stdout
    kept = [line for line in frozen.splitlines() if not line.startswith(("pip==", "wheel=="))]
    # The local version names a build ("+cpu"); any official build of the version will do.
    _write(toolchain, [re.sub(r"\+\S+$", "", line) for line in kept])


def write_hashes(toolchain: Toolchain) -> None:
    """Look up the hashes of a lock's pins as they are."""
    pinned = re.findall(r"^[\w.-]+==[^\s;\\]+", toolchain.lock.read_text(encoding="utf-8"), re.MULTILINE)
    _write(toolchain, pinned)


def write_cuda() -> None:
    """The lock of what the build of torch on PyPI wants beside: the packages of CUDA, and Triton's compiler."""
    toolchain = Toolchain(CUDA)
    text = _compiled(
        toolchain, toolchain.lock.with_suffix(".in"), ["--python-platform", "x86_64-manylinux_2_40"]
    )
    found = [f"{each['name']}=={each['version']}" for each in tomllib.loads(text)["packages"]]
    _write(toolchain, [pin for pin in found if pin.startswith(("cuda-", "nvidia-", "triton=="))])


def _write(toolchain: Toolchain, pinned: list[str]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "pins.txt"
        file.write_text("\n".join(pinned) + "\n", encoding="utf-8")
        text = _compiled(toolchain, file, ["--no-deps", "--universal"])
    builds = (toolchain.lock.parent / BUILDS).read_text(encoding="utf-8")
    toolchain.lock.write_text(lock_text(pinned, tomllib.loads(text), builds), encoding="utf-8")
    print(f"{toolchain.name}: {len(pinned)} packages pinned in {toolchain.lock}")


def _compiled(toolchain: Toolchain, file: Path, options: list[str]) -> str:
    """What uv finds of a file's requirements on PyPI, as a pylock.toml (PEP 751)."""
    with tempfile.TemporaryDirectory() as scratch:
        pip = environment(Path(scratch) / "env", toolchain)
        call([*pip, UV], toolchain)
        made = Path(scratch) / "pylock.toml"
        words = [
            "pip",
            "compile",
            "--quiet",
            "--format",
            "pylock.toml",
            "--python-version",
            PYTHON,
            "-o",
            str(made),
        ]
        call([pip[0], "-m", "uv", *words, *options, str(file)], toolchain)
        return made.read_text(encoding="utf-8")


def lock_text(pinned: list[str], found: dict[str, Any], builds: str) -> str:
    """A lock of pins, with the hashes of a pylock.toml's files and of the builds of torch.

    ``builds`` has lines as ``sha256sum`` writes them.  Raises :class:`LifecycleError` for a pin without any file.
    """
    files = {name_of(each["name"]): each for each in found["packages"]}
    parts: dict[bool, list[str]] = {False: [], True: []}
    for pin in pinned:
        name, version = pin.split("==")
        each = files.get(name_of(name), {})
        hashes = {wheel["hashes"]["sha256"] for wheel in each.get("wheels", []) if fits(file_name(wheel))}
        if name_of(name) == "torch":
            hashes |= _builds(builds, version)
        source = not hashes
        if source and "sdist" in each:
            hashes = {each["sdist"]["hashes"]["sha256"]}
        if not hashes:
            raise LifecycleError(f"PyPI has no file of {pin} for Python 3.11 on Linux")
        lines = [pin, *(f"    --hash=sha256:{digest}" for digest in sorted(hashes))]
        parts[source].append(" \\\n".join(lines))
    sources = [FROM_SOURCE, *parts[True]] if parts[True] else []
    return "\n".join([HEADER, *parts[False], *sources]) + "\n"


def file_name(file: dict[str, Any]) -> str:
    """The name of a file in a pylock.toml."""
    return str(file.get("name") or file["url"].rpartition("/")[2])


def fits(wheel: str) -> bool:
    """Whether a wheel may be installed by CPython 3.11 on Linux with glibc (PEP 427)."""
    pythons, abis, platforms = (part.split(".") for part in wheel.removesuffix(".whl").rsplit("-", 3)[1:])
    if not any(PLATFORM.fullmatch(platform) for platform in platforms):
        return False
    return any(_runs(python, abi) for python in pythons for abi in abis)


def _runs(python: str, abi: str) -> bool:
    kind, number = python[:2], python[3:]
    if not python.startswith(("py3", "cp3")) or (number and not number.isdigit()):
        return False
    minor = int(number or 0)
    if abi == "none":
        return minor <= 11 if kind == "py" else minor in (0, 11)
    return kind == "cp" and (minor <= 11 if abi == "abi3" else python == abi == "cp311")


def _builds(text: str, version: str) -> set[str]:
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {digest for digest, file in lines if file.startswith(f"torch-{version}+") and fits(file)}


ACTIONS = {"lock": write_lock, "hash": write_hashes}


def main(action: str, names: list[str]) -> None:
    """``lock`` or ``hash`` for each name."""
    for name in names:
        if name == CUDA:
            write_cuda()
        else:
            ACTIONS[action](Toolchain(name))


if __name__ == "__main__":
    sys.exit("python -m pipeline.toolchains {lock,hash} NAME ...")
