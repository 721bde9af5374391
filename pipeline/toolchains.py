"""Toolchains: named, pinned environments, one per set of libraries that can live together.

    python3 -m pipeline.toolchains create core     # what `make env-core` runs

``configs/toolchains/NAME.in`` says what is wanted and why, ``NAME.lock`` pins every
package, transitive ones included, with the hashes of its files, and ``.venvs/NAME`` is made from the lock.  A stamp in
the environment holds the lock's digest: the same digest means there is nothing to do,
and pip is not called.  Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import LifecycleError, UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = (
    "controller",
    "core",
    "serving",
    "gateway",
    "launch",
    "tracking",
    "nemo",
    "dev",
    "charts",
    "bench",
    "bench-datatrove",
    "bench-data-juicer",
    "bench-serving",
)
# Others: DEFAULT_GB.
NEEDS_GB = {
    "controller": 0.2,
    "core": 6.0,
    "serving": 6.0,
    "launch": 1.5,
    "nemo": 5.0,
    "dev": 0.5,
    "charts": 0.6,
    "bench-serving": 4.0,
}
DEFAULT_GB = 1.0
STAMP = ".lock-digest"
FROM_SOURCE = "# Built from source, apart, with the tools of build.lock."
# Locks that are no environments: what PyPI's build of torch wants beside, and what sources are built with.
CUDA = "torch-cuda"
SHARED = (CUDA, "build")
BUILDS = "torch.sha256"  # official builds of torch that are not on PyPI, as `sha256sum` lists files
QUIETLY = ("--disable-pip-version-check", "--no-compile")


@dataclass(frozen=True)
class Toolchain:
    """One environment: its lock and the folder it is installed in."""

    name: str
    root: Path = ROOT

    @property
    def lock(self) -> Path:
        return self.root / "configs" / "toolchains" / f"{self.name}.lock"

    @property
    def folder(self) -> Path:
        # Absolute: a step runs in a folder of its own.
        return (Path(os.environ.get("LIFECYCLE_VENVS") or self.root / ".venvs") / self.name).absolute()

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def lock_digest(self) -> str:
        """SHA-256 of the lock, which names the exact content of the environment."""
        return hashlib.sha256(self.lock.read_bytes()).hexdigest()

    def ready(self) -> bool:
        """Whether the environment was completed from the lock as it is now."""
        stamp = self.folder / STAMP
        return stamp.is_file() and stamp.read_text(encoding="utf-8").strip() == self.lock_digest()

    def ask(self, module: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a module of this repository in the environment; what it said, whatever its status."""
        command = [str(self.python), "-m", module, *words]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=False)

    def require(self) -> None:
        """Raise :class:`UserError` unless the environment is there and up to date."""
        if not self.ready():
            state = "does not match its lock" if self.folder.exists() else "is not installed"
            raise UserError(f"the {self.name} toolchain {state}: run `make env-{self.name}`")

    def site_packages(self) -> Path:
        """Where the environment's packages lie."""
        return (
            self.folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        )

    def python_version(self) -> str:
        """The interpreter's full version, from the environment's own record."""
        text = (self.folder / "pyvenv.cfg").read_text(encoding="utf-8")
        found = re.search(r"^version\s*=\s*(\S+)", text, re.MULTILINE)
        return found.group(1) if found else "unknown"


def create(toolchain: Toolchain) -> None:
    """Make the environment from its lock; does nothing where it is up to date.

    Of two at once the second waits and finds it done.  An installation that was interrupted is begun anew.

    Raises :class:`UserError` for the wrong Python or too little disk and
    :class:`LifecycleError` with the package's name and what to do when pip fails.
    """
    if toolchain.ready():
        return
    if sys.version_info[:2] != (3, 11):
        raise UserError(
            f"Python 3.11 is needed, this is {sys.version.split()[0]} ({sys.executable}); "
            "name the right one: make PYTHON=/path/to/python3.11"
        )
    with _alone(toolchain) as held:
        if not toolchain.ready():
            _install(toolchain, held)


@contextlib.contextmanager
def _alone(toolchain: Toolchain) -> Iterator[int]:
    """Hold the right to build the environment; yields the lock's descriptor.

    The kernel gives the right back however we end, and no sooner than whoever inherited the descriptor has ended.
    Raises :class:`UserError` where the folder cannot be written.
    """
    try:
        toolchain.folder.parent.mkdir(parents=True, exist_ok=True)
        held = os.open(toolchain.folder.parent / f".{toolchain.name}.building", os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise UserError(
            f"{toolchain.folder.parent} cannot be written ({error.strerror}): set LIFECYCLE_VENVS to a folder that can"
        ) from None
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{toolchain.name}: is being installed already; waiting for that ...", flush=True)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield held
    finally:
        os.close(held)


def _install(toolchain: Toolchain, held: int) -> None:
    free = shutil.disk_usage(toolchain.folder.parent).free / 1e9
    if free < NEEDS_GB.get(toolchain.name, DEFAULT_GB):
        raise UserError(
            f"the {toolchain.name} toolchain needs {NEEDS_GB.get(toolchain.name, DEFAULT_GB):.0f} GB of disk, "
            f"{free:.1f} GB are free in {toolchain.folder.parent}"
        )
    started = time.monotonic()
    count = len(pins(toolchain.lock))
    print(f"{toolchain.name}: installing {count} pinned packages into {toolchain.folder} ...", flush=True)
    # The stamp first: an environment that is half gone must not pass for a whole one.
    (toolchain.folder / STAMP).unlink(missing_ok=True)
    shutil.rmtree(toolchain.folder, ignore_errors=True)
    pip = environment(toolchain.folder, toolchain, held)
    # Exactly as pinned; resolving again could only fail, since some packages' stated ranges are narrower than what works.
    # No file that is not in the lock: neither another's of the same name, nor what a source would be built with.
    exactly = [*pip, "--no-deps", "--require-hashes"]
    wheels, _, sources = toolchain.lock.read_text(encoding="utf-8").partition(FROM_SOURCE)
    wheels = _with_build(wheels, toolchain)
    with tempfile.TemporaryDirectory() as scratch:
        _requirements(Path(scratch) / "wheels.txt", wheels)
        call([*exactly, "--only-binary=:all:", "-r", f"{scratch}/wheels.txt"], toolchain, held)
        if sources:
            _requirements(Path(scratch) / "sources.txt", sources)
            call([*pip, "--no-deps", "--no-index", *_built(Path(scratch), toolchain, held)], toolchain, held)
        if _lacks_cuda(toolchain):
            text = (toolchain.lock.parent / f"{CUDA}.lock").read_text(encoding="utf-8")
            _requirements(Path(scratch) / "cuda.txt", text, without=set(map(name_of, pins(toolchain.lock))))
            call([*exactly, "--only-binary=:all:", "-r", f"{scratch}/cuda.txt"], toolchain, held)
    (toolchain.folder / STAMP).write_text(toolchain.lock_digest() + "\n", encoding="utf-8")
    print(f"{toolchain.name}: ready in {time.monotonic() - started:.0f} s", flush=True)


def environment(folder: Path, toolchain: Toolchain, held: int | None = None) -> list[str]:
    """A fresh virtual environment; returns the command that installs into it."""
    call([sys.executable, "-m", "venv", str(folder)], toolchain, held)
    return [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *QUIETLY]


def _built(scratch: Path, toolchain: Toolchain, held: int) -> list[str]:
    """Wheels of ``sources.txt``, built apart with the pinned tools of ``build.lock``."""
    pip = environment(scratch / "build", toolchain, held)
    tools = toolchain.lock.parent / "build.lock"
    call([*pip, "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", str(tools)], toolchain, held)
    words = ["--no-deps", "--require-hashes", "--no-build-isolation", "--wheel-dir", f"{scratch}/made"]
    command = [pip[0], "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", *words]
    call([*command, "-r", f"{scratch}/sources.txt"], toolchain, held)
    return sorted(map(str, (scratch / "made").glob("*.whl")))


def _with_build(text: str, toolchain: Toolchain) -> str:
    """A lock's text that asks for the build of torch with a local version ("+cpu"), where pip can have one that is official.

    Between files with an equal version pip prefers those whose hash an index tells, and a folder tells none.
    """
    version = pins(toolchain.lock).get("torch")
    if version is None:
        return text
    command = [
        str(toolchain.python),
        "-m",
        "pip",
        "index",
        "versions",
        "torch",
        "--disable-pip-version-check",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    offered = set(re.findall(r"[^\s,]+", said))
    known = (toolchain.lock.parent / BUILDS).read_text(encoding="utf-8")
    for build in dict.fromkeys(re.findall(rf"torch-({re.escape(version)}\+\w+)-", known)):
        if build in offered:
            return re.sub(rf"^torch=={re.escape(version)}(?=\s)", f"torch=={build}", text, flags=re.MULTILINE)
    return text


def _lacks_cuda(toolchain: Toolchain) -> bool:
    """Whether the torch that pip chose wants CUDA's packages, as PyPI's does, and the lock has none itself."""
    if "nvidia-cublas" in pins(toolchain.lock):
        return False
    found = [
        path.read_text(encoding="utf-8")
        for path in toolchain.site_packages().glob("torch-*.dist-info/METADATA")
    ]
    return any(re.search(r"^Requires-Dist: (nvidia|cuda)-", text, re.MULTILINE) for text in found)


def _requirements(file: Path, text: str, without: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """Write a lock's text but for some packages; a package's hashes are on the lines after it."""
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)
    kept = [entry for entry in entries if name_of(entry.partition("==")[0]) not in without]
    file.write_text("".join(kept), encoding="utf-8")


def name_of(package: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


def pins(lock: Path) -> dict[str, str]:
    """Package name to pinned version, as a lock states them."""
    found = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        match = re.match(r"^([A-Za-z0-9._-]+)==([^\s;]+)", line)
        if match:
            found[match.group(1).lower()] = match.group(2)
    return found


def failure_advice(output: str) -> str:
    """What went wrong in pip's output, and what to do, in one or two sentences."""
    changed = re.search(r"DO NOT MATCH THE HASHES.*?^\s+(\S+) from", output, re.DOTALL | re.MULTILINE)
    if changed:
        return (
            f"{changed[1]}: the file that was offered is not one that the lock names, so it was changed, or is another build "
            "than the official ones; look at where pip gets it from (pip config list)"
        )
    patterns = (
        (
            r"No matching distribution found for (\S+)",
            "is not to be had for this Python and platform from the index that pip is set up to use",
        ),
        (
            r"Cannot install (\S+) because",
            "is not to be had in the pinned version from the index that pip is set up to use",
        ),
        (
            r"Could not find a version that satisfies the requirement (\S+)",
            "is not to be had from the index that pip is set up to use",
        ),
        (
            r"Failed building wheel for (\S+)",
            "could not be built; a C compiler and the Python headers are needed (Debian: build-essential python3-dev)",
        ),
        (
            r"Failed to build (?:installable wheels for some pyproject.toml based projects \()?([\w.-]+)",
            "could not be built; a C compiler and the Python headers are needed (Debian: build-essential python3-dev)",
        ),
        (
            r"No space left on device()",
            "there was no disk space left; free some, or set LIFECYCLE_VENVS to a larger disk",
        ),
    )
    for pattern, meaning in patterns:
        found = re.search(pattern, output)
        if found:
            return f"{found.group(1)} {meaning}".strip()
    if re.search(r"(ReadTimeout|ConnectionError|NewConnectionError|Max retries|Temporary failure)", output):
        return "the package index could not be reached; check the network or pip's proxy settings"
    lines = [line for line in output.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "pip gave no reason"


def call(command: list[str], toolchain: Toolchain, held: int | None = None) -> None:
    """Run a command of an installation, which inherits the lock ``held``.  Raises :class:`LifecycleError`."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        pass_fds=() if held is None else (held,),
    )
    if done.returncode:
        log = toolchain.folder.parent / f"{toolchain.name}-install.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(done.stdout, encoding="utf-8")
        raise LifecycleError(
            f"the {toolchain.name} toolchain could not be installed: {failure_advice(done.stdout)}.\n"
            f"Mend that and run `make env-{toolchain.name}` again; pip's whole output is in {log}"
        )


def main(arguments: list[str]) -> int:
    """``create``, ``lock`` or ``hash`` for names; exit status 2 for a user's mistake, 1 when pip failed."""
    action, *names = arguments or [""]
    known = {"create": NAMES, "lock": (*NAMES, *SHARED), "hash": (*NAMES, *SHARED)}
    if not names or not set(names) <= set(known.get(action, ())):
        usage = f"{{{','.join(known)}}} {{{','.join(NAMES)}}} ..."
        print(f"usage: python -m pipeline.toolchains {usage}", file=sys.stderr)
        return 2
    try:
        if action == "create":
            for name in names:
                create(Toolchain(name))
        else:
            from pipeline import locks

            locks.main(action, names)
    except LifecycleError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
