"""The verb ``scale`` on its own, and runs made from a known law."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pipeline.cli import guarded
from pipeline.plan.scaling import commands
from pipeline.plan.scaling.laws import Parametric
from pipeline.plan.scaling.objective import Array

TRUTH = Parametric(1.8, 480.0, 2000.0, 0.35, 0.37)


def scale(*arguments: str) -> int:
    """The exit status of ``lifecycle scale ARGUMENTS``."""
    parser = argparse.ArgumentParser(prog="lifecycle")
    verbs = parser.add_subparsers(required=True).add_parser("scale").add_subparsers(required=True)
    commands.add(verbs)
    options = parser.parse_args(["scale", *arguments])
    return guarded(options.call, options)


def design(budgets: list[float], sizes: int, spread: float = 1.2) -> tuple[Array, Array]:
    """Parameters and tokens of an IsoFLOP sweep about the true optimum."""
    n, d = [], []
    for flops in budgets:
        best, _ = TRUTH.optimum(flops)
        for off in np.linspace(-spread, spread, sizes):
            n.append(best * np.exp(off))
            d.append(flops / 6 / n[-1])
    return np.array(n), np.array(d)


def measured(n: Array, d: Array, noise: float, seed: int) -> Array:
    """Losses of the true law with normal noise in log L."""
    rng = np.random.default_rng(seed)
    exact = np.array([TRUTH.loss(*each) for each in zip(n, d, strict=True)])
    found: Array = exact * np.exp(noise * rng.standard_normal(len(n)))
    return found


def write_runs(file: Path, n: Array, d: Array, loss: Array, held_out: int = 0) -> Path:
    """A runs.csv; the last ``held_out`` rows are held out."""
    lines = ["parameters,tokens,loss,held_out"]
    for row, (size, tokens, value) in enumerate(zip(n, d, loss, strict=True)):
        lines.append(f"{size:.6g},{tokens:.6g},{value:.6f},{int(row >= len(n) - held_out)}")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
