"""The verbs of ``lifecycle scale`` that are about training: train, sweep, collect, forecast.

:func:`add` puts their options under the verb ``scale``; what they need is imported when one is called, for
``lifecycle`` must start at once.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

from pipeline.plan.questions import question

TRAIN = """examples:
  lifecycle scale train --flops 5.76e23
  lifecycle scale train --gpu-hours 1e6 --gpu H100-80GB --mfu 0.4 --explain
  lifecycle scale train --budget-usd 2e6 --gpu H100-80GB --plot isoflop.svg
  lifecycle scale train --runs runs.csv --flops 1e15 --json
"""
SWEEP = """examples:
  lifecycle scale sweep llama-tiny --budgets 5e11,1e12,2e12,4e12 --tokens-per-parameter 2 --held-out 1.4e13
  lifecycle scale sweep llama-tiny --budgets 1e12,4e12 --sizes 150e3,350e3,1e6 --held-out 1.6e13
"""
COLLECT = """example:
  lifecycle scale collect sweeps/llama-tiny --output runs.csv
"""
FORECAST = """examples:
  lifecycle scale forecast --points points.csv --flops 3.8e25 --chance 0.25
"""


BOOTSTRAP = {"level": "0.9", "bootstrap": "400", "seed": "1234"}


def add(subparsers: Any) -> None:
    """Add the verbs to the subparsers of ``scale``."""
    _train(
        question(
            subparsers, "train", train, "compute-optimal model and tokens for a budget, by every law", TRAIN
        )
    )
    _sweep(
        question(subparsers, "sweep", sweep, "write the recipes of an IsoFLOP sweep for a base recipe", SWEEP)
    )
    _collect(
        question(subparsers, "collect", collect, "what a sweep's recipes measured, as runs.csv", COLLECT)
    )
    _forecast(question(subparsers, "forecast", forecast, "from compute to loss to task accuracy", FORECAST))


def train(options: argparse.Namespace) -> int:
    """``scale train``."""
    _one_thread()
    from pipeline.plan.scaling.train import train as call

    return call(options)


def sweep(options: argparse.Namespace) -> int:
    """``scale sweep``."""
    from pipeline.plan.scaling.sweep import sweep as call

    return call(options)


def collect(options: argparse.Namespace) -> int:
    """``scale collect``."""
    from pipeline.plan.scaling.collect import collect as call

    return call(options)


def forecast(options: argparse.Namespace) -> int:
    """``scale forecast``."""
    _one_thread()
    from pipeline.plan.scaling.forecast import forecast as call

    return call(options)


def _one_thread() -> None:
    """Keep OpenBLAS, which NumPy and SciPy load, from sharing matrices of 5 x 5 between threads.

    On 2 busy cores a fit took 2.5 s of processor time with its threads waiting for each other, and 0.08 s without.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def _bootstrap(parser: argparse.ArgumentParser, known: bool) -> None:
    """Options of the resampling; where not ``known`` they are None until said, since they may be of no use."""
    level, draws, seed = BOOTSTRAP.values() if known else (None, None, None)
    parser.add_argument("--level", default=level, help="share of the intervals (default 0.9)")
    parser.add_argument("--bootstrap", default=draws, metavar="DRAWS", help="resamples (default 400)")
    parser.add_argument("--seed", default=seed, help="of the resamples (default 1234)")


def _train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--flops", help="training compute in FLOP, e.g. 5.76e23")
    parser.add_argument("--gpu-hours", help="training compute in GPU-hours; needs --gpu")
    parser.add_argument("--budget-usd", help="money, at the prices of configs/prices.yaml; needs --gpu")
    parser.add_argument("--gpu", help="GPU, e.g. H100-80GB")
    parser.add_argument("--mfu", help="model FLOPs utilisation (default 0.4)")
    parser.add_argument("--precision", help="whose peak is counted (default bf16)")
    parser.add_argument(
        "--runs",
        metavar="FILE",
        help="CSV of your own runs: parameters, tokens, loss (nats a token), and if known flops, budget, epochs, held_out, name",
    )
    parser.add_argument(
        "--interval",
        choices=("parametric", "percentile", "bca"),
        help="how the runs are resampled (default parametric)",
    )
    _bootstrap(parser, known=False)
    parser.add_argument("--plot", metavar="FILE", help="IsoFLOP curves and optima as .svg, .png or .pdf")
    parser.add_argument("--explain", action="store_true", help="the derivation of every number")
    parser.add_argument("--json", action="store_true", help="for machines")


def _sweep(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="the base recipe: a name in recipes/, or a YAML file")
    parser.add_argument(
        "--budgets", required=True, metavar="C,C,...", help="training compute of each budget in FLOP"
    )
    parser.add_argument(
        "--sizes",
        metavar="N,N,...",
        help="parameters of the models (default: --models sizes about the expected optimum of each budget)",
    )
    parser.add_argument(
        "--models", default="5", help="sizes a budget, where --sizes is not given (default 5)"
    )
    parser.add_argument(
        "--tokens-per-parameter",
        default="20",
        metavar="R",
        help="expected optimum, about which sizes are laid (default 20; small models on little data: 2 to 5)",
    )
    parser.add_argument(
        "--spacing",
        default="1.8",
        help="ratio of neighbouring sizes, where --sizes is not given (default 1.8)",
    )
    parser.add_argument(
        "--held-out",
        metavar="C",
        help="compute of one more run, at the expected optimum, that no fit will see",
    )
    parser.add_argument(
        "--held-out-size",
        metavar="N",
        help="parameters of that run, where the expected optimum is not wanted",
    )
    parser.add_argument(
        "--tokens-per-sequence",
        metavar="T",
        help="mean length of a training sequence (default: as curation of the base recipe counted, else the context)",
    )
    parser.add_argument("--set", default="", metavar="'KEY=VALUE ...'", help="settings of the base recipe")
    parser.add_argument("--site", default="local", help="a name in configs/sites/, or a YAML file")
    parser.add_argument(
        "--runs", default=os.environ.get("LIFECYCLE_RUNS", "runs"), help="where artifacts are kept"
    )
    parser.add_argument("--output", metavar="FOLDER", help="default: sweeps/RECIPE")
    parser.add_argument("--json", action="store_true", help="for machines")


def _collect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", help="the folder that `scale sweep` wrote")
    parser.add_argument(
        "--runs", default=os.environ.get("LIFECYCLE_RUNS", "runs"), help="where artifacts are kept"
    )
    parser.add_argument("--output", metavar="FILE", help="default: FOLDER/runs.csv")


def _forecast(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--points",
        required=True,
        metavar="FILE",
        help="CSV: nll (normalised negative log-likelihood of the right answer), and flops, accuracy or both",
    )
    parser.add_argument("--flops", help="training compute to forecast, in FLOP")
    parser.add_argument("--chance", default="0", help="accuracy of guessing, e.g. 0.25 (default 0)")
    parser.add_argument("--ceiling", default="1", help="highest accuracy (default 1)")
    _bootstrap(parser, known=True)
    parser.add_argument("--plot", metavar="FILE", help="both fits as .svg, .png or .pdf")
    parser.add_argument("--explain", action="store_true", help="the derivation of every number")
    parser.add_argument("--json", action="store_true", help="for machines")
