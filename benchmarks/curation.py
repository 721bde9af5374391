"""Curation beside others: documents a second, peak memory, and growth with the corpus.

    make bench-curation
    .venvs/controller/bin/python -m benchmarks.curation --rounds 3 --write

Each side (``benchmarks/sides``) is a process of its own on the same files and with the
same number of workers; the sides take turns.  ``seconds`` are the work as the side itself measures it, without imports and without starting Ray;
``whole`` is the process from start to end; memory is the largest sum over its process
tree, read from ``/proc`` five times a second.  Last, near-duplicates planted at several edit
rates are looked for (``benchmarks/sides/duplicates.py``).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from pipeline.runner.provenance import processor
from pipeline.toolchains import ROOT, Toolchain

MARKS = ("<!-- curation -->", "<!-- /curation -->")
GROWTH = (1, 4, 16)  # times a quarter of the documents; 4 is the corpus of the comparisons


@dataclass
class Side:
    """One tool at one piece of work."""

    module: str
    toolchain: str
    work: str
    environment: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, float]] = field(default_factory=list)
    said: dict[str, object] = field(default_factory=dict)

    def run(self, corpus: Path, output: Path, workers: int) -> dict[str, float]:
        """Run once; the figures of the run."""
        command = [str(Toolchain(self.toolchain).python), "-m", f"benchmarks.sides.{self.module}"]
        command += [str(corpus), str(output), "--workers", str(workers), "--work", self.work]
        started = time.monotonic()
        with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as errors:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=told, stderr=errors, text=True,
                env={**os.environ, **self.environment, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"},
            )  # fmt: skip
            total = own = worker = 0
            while process.poll() is None:
                sizes = memory(process.pid)
                total = max(total, sum(resident for resident, _ in sizes))
                own = max(own, sizes[0][1])
                worker = max(worker, *(private for _, private in sizes[1:]), 0)
                time.sleep(0.2)
            whole = time.monotonic() - started
            told.seek(0)
            errors.seek(0)
            if process.returncode != 0:
                raise RuntimeError(f"{self.module} ended with {process.returncode}:\n{errors.read()[-2000:]}")
            self.said = json.loads(told.read().splitlines()[-1])
        shutil.rmtree(output, ignore_errors=True)
        seconds = float(str(self.said["seconds"]))
        return {
            "seconds": seconds,
            "whole": whole,
            "rate": float(str(self.said["documents_in"])) / seconds,
            "total_mb": total / 1024,
            "own_mb": own / 1024,
            "worker_mb": worker / 1024,
        }

    def median(self, name: str) -> float:
        """The median of a figure over the counted runs."""
        return statistics.median(run[name] for run in self.runs)


def memory(root: int) -> list[tuple[int, int]]:
    """(resident, of it private) memory (kB) of a process and then of all below it.

    Private memory leaves out mapped files, whose pages the system takes back when it needs them.
    """
    parents: dict[int, list[int]] = {}
    sizes: dict[int, tuple[int, int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "status").read_text()
        except OSError:
            continue
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        pid = int(entry.name)
        parents.setdefault(int(values["PPid"]), []).append(pid)
        resident, private = (int(values.get(name, "0 kB").split()[0]) for name in ("VmRSS", "RssAnon"))
        sizes[pid] = resident, private
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(sizes.get(pid, (0, 0)))
        waiting += parents.get(pid, [])
    return found


def compare(sides: list[Side], corpus: Path, scratch: Path, rounds: int, workers: int) -> None:
    """Run the sides in turn."""
    for _ in range(rounds):
        for side in sides:
            figures = side.run(corpus, scratch / "output", workers)
            print(
                f"{side.said['tool']}, {side.work}: {figures['seconds']:.1f} s, {figures['rate']:,.0f} documents/s",
                flush=True,
            )
            side.runs.append(figures)


def table(sides: list[Side]) -> list[str]:
    """Rows of one comparison; the first side is ours."""
    lines = [
        "| | documents/s (median) | least | most | ours is | documents left | memory, all processes | whole process |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for side in sides:
        rates = [run["rate"] for run in side.runs]
        times = statistics.median(
            ours["rate"] / other["rate"] for ours, other in zip(sides[0].runs, side.runs, strict=True)
        )
        lines.append(
            f"| {side.said['tool']} {side.said['version']} | {statistics.median(rates):,.0f} | {min(rates):,.0f} | "
            f"{max(rates):,.0f} | {'' if side is sides[0] else f'{times:.1f}x'} | {side.said['documents_out']:,} | "
            f"{side.median('total_mb'):,.0f} MB | {side.median('whole'):.1f} s |"
        )
    return lines


def found_by_rate() -> list[str]:
    """Planted near-duplicates found, by edit rate, beside datasketch."""
    told = subprocess.run(
        [str(Toolchain("core").python), "-m", "benchmarks.sides.duplicates"],
        cwd=ROOT, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    said = json.loads(told.stdout.splitlines()[-1])
    threshold = said["threshold"]
    lines = [
        f"Planted near-duplicates found (threshold {threshold:g}; truth is the exact Jaccard similarity of the shingles):",
        "",
        "| words exchanged | mean similarity | alike: found | datasketch | unlike: found | datasketch |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in said["rows"]:
        (ours, wrong), (theirs, their_wrong) = row["ours"], row["datasketch"]
        lines.append(
            f"| {row['rate']:.1%} | {row['likeness']:.2f} | {ours} of {row['alike']} | {theirs} | "
            f"{wrong} of {row['unlike']} | {their_wrong} |"
        )
    shares = {
        side: f"{exact / count:.1%} ({near / count:.1%} of {threshold - 0.1:g} or more)"
        for side, (count, exact, near) in said["precision"].items()
    }
    return [
        *lines, "",
        f"Of all pairs found, {shares['ours']} are alike by exact similarity; datasketch: {shares['datasketch']}.",
    ]  # fmt: skip


def main() -> None:
    """Make the corpora, measure, print the tables, and write them into the README on request."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3, help="counted rounds")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help="write the tables into benchmarks/README.md")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="curation-") as folder:
        scratch = Path(folder)
        whole = scratch / "corpus"
        subprocess.run(
            [str(Toolchain("core").python), "-m", "benchmarks.corpus", str(whole), "--documents", str(given.documents * 4)],
            cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        # The smaller corpora are the first shards of the largest.
        shards = sorted(whole.glob("*.jsonl"))
        corpora = {}
        for scale in GROWTH:
            corpora[scale] = scratch / f"corpus{scale}"
            corpora[scale].mkdir()
            for shard in shards[: len(shards) * scale // max(GROWTH)]:
                (corpora[scale] / shard.name).symlink_to(shard)
        filters = [Side("ours", "core", "filters"), Side("curator_ray", "core", "filters")]
        compare(filters, corpora[4], scratch, given.rounds, given.workers)
        if filters[0].said["kept"] != filters[1].said["kept"]:
            raise RuntimeError("the two sides kept different documents")
        dedup = [
            Side("ours", "core", "dedup"),
            Side("datatrove_side", "bench-datatrove", "dedup"),
            Side("datatrove_side", "bench-datatrove", "dedup", {"WORDS": "whitespace"}),
            Side("data_juicer_side", "bench-data-juicer", "dedup"),
        ]
        compare(dedup, corpora[4], scratch, max(2, given.rounds - 1), given.workers)
        growth = []
        for scale, corpus in corpora.items():
            side = Side("ours", "core", "dedup")
            side.runs = [side.run(corpus, scratch / "output", given.workers)]
            print(f"{scale}x: {side.runs[0]}", flush=True)
            growth.append(
                f"| {scale}x, {side.said['documents_in']:,} documents | {side.median('seconds'):.1f} s | "
                f"{side.median('rate'):,.0f} | {side.median('worker_mb'):,.0f} MB | {side.median('own_mb'):,.0f} MB |"
            )
    same = f"Both kept the same {filters[0].said['documents_out']:,} documents (equal digests of the ids)."
    text = "\n".join(
        [
            "Unicode repair and 17 filters, read and write:", "", *table(filters), "", same, "",
            "Filters, MinHash near-duplicates, read and write:", "", *table(dedup), "",
            "Growth (filters and near-duplicates; once each):", "",
            "| corpus | seconds | documents/s | largest worker | the step itself |", "| --- | ---: | ---: | ---: | ---: |",
            *growth, "", "Memory without mapped files.", "", *found_by_rate(), "",
            f"`make bench-curation`: {given.documents:,} documents, {given.workers} workers, {given.rounds} rounds in "
            f"alternation (near-duplicates {max(2, given.rounds - 1)}), {os.cpu_count()} cores of {processor()}, {date.today()}, "
            f"Python {platform.python_version()}.",
        ]
    )  # fmt: skip
    print(text)
    if given.write:
        readme = ROOT / "benchmarks" / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(MARKS[0])
        _, _, after = rest.partition(MARKS[1])
        readme.write_text(f"{before}{MARKS[0]}\n{text}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
