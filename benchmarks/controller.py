"""What the controller costs: a run with nothing to do, and the machinery around a step.

    make bench-controller
    .venvs/controller/bin/python -m benchmarks.controller --rounds 15 --write

No-op: the whole process, start to end, of ``lifecycle run`` on a finished 7-stage chain,
beside ``dvc repro`` and ``snakemake`` on chains of the same shape over the same files,
in alternation; the first round warms up and is not counted.  A run that did any work
fails the benchmark.  Machinery: the light chain of the faults suite, whose steps do
almost nothing, from nothing and again as a no-op; the difference by step is what process
start, contract, digests, flushing and publishing cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from pipeline.runner.provenance import processor
from pipeline.toolchains import ROOT, Toolchain

RECIPE = "llama-mini"
STAGES = ("curate", "pretrain", "train", "align", "evaluate", "export", "deploy")
PARENTS = {
    "curate": (),
    "pretrain": ("curate",),
    "train": ("curate", "pretrain"),
    "align": ("curate", "pretrain", "train"),
    "evaluate": ("curate", "pretrain", "train", "align"),
    "export": ("curate", "pretrain", "train", "align", "evaluate"),
    "deploy": ("export",),
}
HEAVY = ("torch", "ray", "numpy", "pandas", "transformers", "nemo_automodel", "nemo_curator", "jinja2")
MARKS = ("<!-- controller -->", "<!-- /controller -->")
LIGHT_STEPS = 3


class Chain:
    """A finished chain under one tool: a command, and words that only a no-op says."""

    def __init__(self, name: str, command: list[str], folder: Path, idle: Callable[[str], bool]) -> None:
        self.name, self.command, self.folder, self.idle = name, command, folder, idle
        self.seconds: list[float] = []

    def run(self) -> str:
        """Run once; returns what it said.  Raises ``RuntimeError`` when it failed."""
        done = subprocess.run(
            self.command,
            cwd=self.folder,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} failed ({done.returncode}):\n{done.stdout}")
        return done.stdout

    def measure(self) -> float:
        """Seconds of one run that must have had nothing to do."""
        began = time.perf_counter()
        said = self.run()
        took = time.perf_counter() - began
        if not self.idle(said):
            raise RuntimeError(f"{self.name} did some work, so this measures nothing:\n{said}")
        return took


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", help="a folder with a finished run of llama-mini (default: one is made)")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="write the table into benchmarks/README.md")
    options = parser.parse_args(words)
    Toolchain("bench").require()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        runs = Path(options.runs).resolve() if options.runs else place / "runs"
        chains = [
            *_lifecycle(runs),
            _dvc(place / "dvc", runs),
            _snakemake(place / "snakemake", runs),
        ]
        try:
            for chain in chains:
                chain.run()
            for number in range(options.rounds + 1):
                for chain in chains:
                    took = chain.measure()
                    if number:
                        chain.seconds.append(took)
            imported = _imports(runs)
            machinery = _machinery(place / "light", options.rounds)
        finally:
            if not options.runs:
                subprocess.run([*_command(runs, "stop")], cwd=ROOT, check=False, capture_output=True)
    table = _table(chains, machinery, imported, options.rounds)
    print(table)
    if options.write:
        readme = ROOT / "benchmarks" / "README.md"
        text = readme.read_text(encoding="utf-8")
        head, tail = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        readme.write_text(f"{head}{MARKS[0]}\n{table}\n{MARKS[1]}{tail}", encoding="utf-8")
    ours, dvc = statistics.median(chains[0].seconds), statistics.median(chains[2].seconds)
    return 0 if ours <= 0.5 * dvc and statistics.median(machinery) < 0.5 else 1


def _lifecycle(runs: Path) -> list[Chain]:
    def idle(steps: int) -> Callable[[str], bool]:
        return lambda said: said.count("up to date") == steps and " starts: " not in said

    return [
        Chain(
            "`lifecycle run` (7 stages, asks the live server for an answer)",
            _command(runs, "run"),
            ROOT,
            idle(7),
        ),
        Chain("`lifecycle export` (6 stages, no server)", _command(runs, "export"), ROOT, idle(6)),
    ]


def _command(runs: Path, verb: str) -> list[str]:
    return [
        str(Toolchain("controller").python),
        "-m",
        "pipeline",
        verb,
        RECIPE,
        "--plain",
        "--runs",
        str(runs),
    ]


def _dvc(folder: Path, runs: Path) -> Chain:
    """The same chain as dvc.yaml: parents' files as deps, settings as params, files as outs."""
    folder.mkdir(parents=True)
    stages = {}
    parameters: dict[str, object] = {}
    for stage in STAGES:
        parameters[stage] = _settings(runs, stage)
        stages[stage] = {
            "cmd": f"mkdir -p out && cp -rL {runs / RECIPE / stage / 'latest'} out/{stage}",
            "deps": ["work.txt", *(f"out/{parent}" for parent in PARENTS[stage])],
            "params": [stage],
            "outs": [f"out/{stage}"],
        }
    (folder / "work.txt").write_text("what the stages' code would be\n")
    # JSON is YAML.
    (folder / "dvc.yaml").write_text(json.dumps({"stages": stages}, indent=1))
    (folder / "params.yaml").write_text(json.dumps(parameters, indent=1))
    dvc = str(Toolchain("bench").folder / "bin" / "dvc")
    for command in (["git", "init", "-q"], [dvc, "init", "-q"], [dvc, "config", "core.analytics", "false"]):
        subprocess.run(command, cwd=folder, env=_environment(), check=True, capture_output=True)
    return Chain(
        "`dvc repro`", [dvc, "repro"], folder, lambda said: "Data and pipelines are up to date" in said
    )


def _snakemake(folder: Path, runs: Path) -> Chain:
    """The same chain as a Snakefile; a file in each output folder stands for the stage."""
    folder.mkdir(parents=True)
    rules = ["rule all:\n    input: " + ", ".join(f"'out/{stage}/manifest.json'" for stage in STAGES[-1:])]
    for stage in STAGES:
        inputs = ", ".join(["'work.txt'", *(f"'out/{parent}/manifest.json'" for parent in PARENTS[stage])])
        others = ", ".join(
            repr(f"out/{stage}/{name}")
            for name in ["manifest.json", *_files(runs, stage)]
            if "\n" not in name
        )
        rules.append(
            f"rule {stage}:\n    input: {inputs}\n    output: {others}\n    params: settings={_settings(runs, stage)!r}\n"
            f"    shell: 'mkdir -p out && rm -rf out/{stage} && cp -rL {runs / RECIPE / stage / 'latest'} out/{stage}'"
        )
    (folder / "work.txt").write_text("what the stages' code would be\n")
    (folder / "Snakefile").write_text("\n\n".join(rules) + "\n")
    command = [str(Toolchain("bench").folder / "bin" / "snakemake"), "-c1"]
    return Chain("`snakemake -c1`", command, folder, lambda said: "Nothing to be done" in said)


def _settings(runs: Path, stage: str) -> dict[str, object]:
    settings = _manifest(runs, stage)["parts"]["settings"]
    return dict(settings)


def _files(runs: Path, stage: str) -> list[str]:
    return sorted(_manifest(runs, stage)["files"])


def _manifest(runs: Path, stage: str) -> dict[str, dict[str, dict[str, object]]]:
    path = runs / RECIPE / stage / "latest" / "manifest.json"
    if not path.exists():  # the first use of a folder that this benchmark makes itself
        subprocess.run(_command(runs, "run"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, dict[str, dict[str, object]]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _imports(runs: Path) -> int:
    """How many modules a no-op imports; raises ``RuntimeError`` when a heavy one is among them."""
    code = (
        "import sys; from pipeline.cli import main; status = main(sys.argv[1:]);"
        "print('\\nMODULES', *sys.modules); sys.exit(status)"
    )
    said = subprocess.run(
        [str(Toolchain("controller").python), "-c", code, *_command(runs, "run")[3:]],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    modules = said.rsplit("MODULES ", 1)[1].split()
    heavy = sorted(set(HEAVY) & {name.split(".")[0] for name in modules})
    if heavy:
        raise RuntimeError(f"the controller imports {', '.join(heavy)}")
    return len(modules)


def _machinery(folder: Path, rounds: int) -> list[float]:
    """Seconds by step of a chain whose steps do next to nothing, over the same chain as a no-op."""
    folder.mkdir()
    documents = folder / "documents.jsonl"
    documents.write_text(
        "".join(json.dumps({"text": f"document {n} " + "word " * n}) + "\n" for n in range(12))
    )
    command = [str(Toolchain("controller").python), "-m", "tests.faults.light"]
    found = []
    for number in range(rounds + 1):
        took = []
        for _ in ("from nothing", "no-op"):
            began = time.perf_counter()
            subprocess.run(
                [*command, str(folder / "runs"), str(documents)], cwd=ROOT, check=True, capture_output=True
            )
            took.append(time.perf_counter() - began)
        shutil.rmtree(folder / "runs")
        if number:
            found.append((took[0] - took[1]) / LIGHT_STEPS)
    return found


def _table(chains: list[Chain], machinery: list[float], imported: int, rounds: int) -> str:
    medians = {chain.name: statistics.median(chain.seconds) for chain in chains}
    base = medians["`dvc repro`"]
    lines = [
        "| a chain with nothing to do | median | least | most | of DVC's |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {chain.name} | {medians[chain.name]:.2f} s | {min(chain.seconds):.2f} s | {max(chain.seconds):.2f} s "
        f"| {medians[chain.name] / base:.2f} |"
        for chain in chains
    ]
    versions = ", ".join(_version(name) for name in ("dvc", "snakemake"))
    lines += [
        "",
        f"Machinery around a step: {statistics.median(machinery):.2f} s (median; {min(machinery):.2f} to "
        f"{max(machinery):.2f} s). A no-op imports {imported} modules, none of {', '.join(HEAVY)}.",
        "",
        f"`make bench-controller`: {rounds} rounds in alternation, {_machine()}, {date.today()}; {versions}, "
        f"Python {platform.python_version()}.",
    ]
    return "\n".join(lines)


def _version(name: str) -> str:
    said = subprocess.run(
        [str(Toolchain("bench").folder / "bin" / name), "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return f"{name} {said.split()[-1]}"


def _machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{os.cpu_count()} cores of {processor()}, {memory:.0f} GiB"


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return {**kept, "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"error: {error}")
